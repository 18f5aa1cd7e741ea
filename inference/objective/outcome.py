"""Outcome: what routings of a batch of episodes predict and lose; validation in training and evaluation both ask here.

(coefficients, weights) of one or several decision rules -> one composed forward -> class probabilities -> accuracy and
loss of every episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.reference import query_losses
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import AnyBasis

SMALLEST = 1e-12  # probability, in losses


@dataclass(frozen=True)
class Outcome:
    """Predictions of the queries of B episodes, a mixture of K networks each, against their labels.

    Attributes:
        members: class probabilities of the K networks, ``(K, B, Q, W)``; 0 at classes that an episode does not have.
        weights: of the networks, ``(K, B)``, sum 1 over K.
        batch: the episodes.
    """

    members: Tensor
    weights: Tensor
    batch: EpisodeBatch

    @classmethod
    def of_probabilities(cls, probabilities: Tensor, batch: EpisodeBatch) -> Outcome:
        """Of predictions that come from elsewhere, ``(B, Q, W)``."""
        return cls(probabilities.unsqueeze(0), probabilities.new_ones(1, len(batch)), batch)

    @cached_property
    def probabilities(self) -> Tensor:
        """Class probabilities of the mixture, ``(B, Q, W)``."""
        return (self.weights[..., None, None] * self.members).sum(0)

    @cached_property
    def accuracy(self) -> Tensor:
        """``(B,)`` share of queries that are right."""
        mask = self.batch.query.mask
        hits = (self.probabilities.argmax(-1) == self.batch.query.labels) & mask
        return hits.sum(-1) / mask.sum(-1)

    @cached_property
    def losses(self) -> Tensor:
        """``(B,)`` mean negative log-likelihood of the queries, in nats per query."""
        return query_losses(self.probabilities.clamp(min=SMALLEST).log(), self.batch)


@torch.no_grad()
def run_routings(
    model: RoutedModel,
    batch: EpisodeBatch,
    routings: Mapping[str, tuple[Tensor, Tensor]],
    *,
    basis: AnyBasis | None = None,
) -> dict[str, Outcome]:
    """Run the routings of several decision rules in one composed forward.

    Args:
        model: in evaluation mode.
        batch: B episodes with labelled queries.
        routings: rule -> coefficients ``(K, B, [L,] C)`` and their weights ``(K, B)``; K may differ.
        basis: the model's deployed basis ``(C, d)``, to spare computing it again; or ``(m, C, d)`` to average over m
            samples of the experts' gates.

    Returns:
        rule -> its outcome.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))
        >>> batch = router.features().attach(EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4))
        >>> mean = router.guide.posterior(batch).mean.unsqueeze(0)
        >>> list(run_routings(router.model, batch, {"mean": (mean, torch.ones(1, len(batch)))}))
        ['mean']
    """
    basis = model.basis() if basis is None else basis
    members = class_probabilities(model, torch.cat([c for c, _ in routings.values()]), batch, basis)
    parts = members.split([len(c) for c, _ in routings.values()])
    return {
        rule: Outcome(part, weights, batch) for (rule, (_, weights)), part in zip(routings.items(), parts, strict=True)
    }


def class_probabilities(model: RoutedModel, coefficients: Tensor, batch: EpisodeBatch, basis: AnyBasis) -> Tensor:
    """Class probabilities ``(K, B, Q, W)`` of routings ``(K, B, [L,] C)``, averaged over the bases ``([m,] C, d)``."""
    if basis.ndim == 2:
        return model.logits(coefficients, batch, basis).softmax(-1)
    return torch.stack([model.logits(coefficients, batch, rows).softmax(-1) for rows in basis]).mean(0)
