"""RoutedBatch: one batch with its posterior, and what rules and scores make of it, each computed when first asked for.

Posterior and batch -> mixtures of the rules -> their networks, each different one once -> probabilities and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.decision.mixture import distinct
from pyro_smat.inference.decision.rules.posterior_predictive import PosteriorPredictive
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.objective.outcome import class_probabilities
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import AnyBasis

Members = tuple[Tensor, Tensor]  # weights (K, B) and class probabilities (K, B, Q, W) of the networks of a rule


class RoutedBatch:
    """B tasks and their posterior.

    Args:
        model: in evaluation mode.
        posterior: q(c | S) of the batch.
        batch: with support features; its query labels are not looked at.
        basis: ``(C, d)``, or ``(m, C, d)`` to average over m samples of the experts' gates.
        generator: of rules and scores that draw, in the order in which they are asked for.
        predictive: the posterior predictive that scores look at, the deployed one where it is one;
            default ``PosteriorPredictive()``.
        members: runs a rule, where networks are already there; default: all queries of the batch.
    """

    def __init__(
        self,
        model: RoutedModel,
        posterior: RoutingPosterior,
        batch: EpisodeBatch,
        basis: AnyBasis,
        *,
        generator: torch.Generator,
        predictive: PosteriorPredictive | None = None,
        members: Callable[[DecisionRule], Members] | None = None,
    ) -> None:
        self.model, self.posterior, self.batch, self.basis = model, posterior, batch, basis
        self.generator, self._predictive = generator, predictive or PosteriorPredictive()
        self._run = members
        self._members: dict[DecisionRule, Members] = {}
        self._scores: dict[UncertaintyScore, Tensor] = {}

    @torch.no_grad()
    def run(self, rules: Iterable[DecisionRule]) -> None:
        """Run the networks of all these rules in one forward, routings that they share once."""
        mixtures = {rule: rule(self.posterior, self.batch, generator=self.generator) for rule in rules}
        if not mixtures:
            return
        rows, index = distinct(torch.cat([mixture.coefficients for mixture in mixtures.values()]))
        drawn = class_probabilities(self.model, rows, self.batch, self.basis)
        drawn = drawn[index, torch.arange(len(self.batch), device=index.device)]
        for (rule, mixture), own in zip(
            mixtures.items(), drawn.split([len(m) for m in mixtures.values()]), strict=True
        ):
            self._members[rule] = mixture.weights, own

    def members(self, rule: DecisionRule) -> Members:
        """Weights ``(K, B)`` and class probabilities ``(K, B, Q, W)`` of a rule's networks."""
        if rule not in self._members:
            if self._run is None:
                self.run([rule])
            else:
                self._members[rule] = self._run(rule)
        return self._members[rule]

    def predictive(self, num_samples: int | None = None) -> PosteriorPredictive:
        """The posterior predictive of so many routings; of None, the deployed one."""
        return self._predictive if num_samples is None else PosteriorPredictive(num_samples)

    def probabilities(self, rule: DecisionRule) -> Tensor:
        """Class probabilities ``(B, Q, W)`` by a rule."""
        weights, members = self.members(rule)
        return (weights[..., None, None] * members).sum(0)

    @torch.no_grad()
    def score(self, score: UncertaintyScore) -> Tensor:
        """U ``(B,)`` by a score."""
        if score not in self._scores:
            self._scores[score] = score(self)
        return self._scores[score]

    @cached_property
    def support_loss(self) -> Tensor:
        """``(B, R)`` leave-one-out support loss of the sources, in nats per shot."""
        return support_losses(self.batch, self.model.metric)

    @property
    def bases(self) -> AnyBasis:
        """``(m, C, d)``, m is 1 with the deployed masks."""
        return self.basis.unsqueeze(0) if self.basis.ndim == 2 else self.basis

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self.model.network.space.block_names)
