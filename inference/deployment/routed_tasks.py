"""RoutedTasks: tasks of one shape that were routed together; a task alone is a batch of one.

Posterior of the batch -> scores and decisions -> networks -> class probabilities. What draws (a rule over a continuous
posterior, a score of draws) is asked of each task by itself, from its own seed, so that the numbers of a task do not
depend on the tasks beside it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pyro_smat.certificates.certificate import accepted_tasks
from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.guides import CatalogPosterior
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.misrouting import top_route_doubt
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.routed_batch import Members, RoutedBatch
from pyro_smat.inference.decision.rules import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.inference.deployment.task_networks import ComposedNetworks, TaskNetworks
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.networks.support_head import SupportHead

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.adapting import TaskRouter

REFINED = "refined"  # the rule that is the network at the refined coefficients
Answering = DecisionRule | str  # a rule, or REFINED
BoolArray = npt.NDArray[np.bool_]
_Asked = tuple[weakref.ref[Labelled], dict[UncertaintyScore, FloatArray]]


class RoutedTasks:
    """B tasks with as many shots and classes each, and their posterior.

    Args:
        owner: the router.
        batch: their supports without padding, with features.
        routed: the router's posterior.
        classes: of each task, as they were given.
        seed: of what draws, the same for every task.
        refinement: of a single task.
        shared: features of a pool under networks that many tasks use.

    Attributes:
        posterior: the router's, or that of the refinement where it has one.
    """

    def __init__(
        self,
        owner: TaskRouter,
        batch: EpisodeBatch,
        routed: RoutingPosterior,
        classes: Sequence[tuple[Hashable, ...]],
        *,
        seed: int,
        refinement: Refinement | None = None,
        shared: NetworkFeatures | None = None,
    ) -> None:
        self.owner, self.batch, self.routed, self.classes = owner, batch, routed, tuple(classes)
        self.seed, self.refinement = seed, refinement
        refined = None if refinement is None else refinement.posterior
        self.posterior = routed if refined is None else refined
        self._shared, self._networks = shared, TaskNetworks(owner, batch, shared)
        self._support_values: dict[UncertaintyScore, FloatArray] = {}
        self._asked: _Asked | None = None  # the queries that were asked last: decisions on them share their scores
        self._mixtures: dict[tuple[Answering, bool], Mixture | None] = {}
        self._composed: dict[tuple[Answering, bool], tuple[ComposedNetworks, SupportHead]] = {}

    def __len__(self) -> int:
        """B."""
        return len(self.batch)

    def take(self, tasks: Sequence[int]) -> RoutedTasks:
        """Some of the tasks, routed as they are."""
        return RoutedTasks(
            self.owner,
            self.batch[tasks],
            self.routed[tasks],
            [self.classes[i] for i in tasks],
            seed=self.seed,
            shared=self._shared,
        )

    def alone(self, task: int) -> RoutedTasks:
        """One of the tasks, by itself; nothing of it is kept here, so that networks live as long as who asks."""
        return self if len(self) == 1 else self.take([task])

    @property
    def deployment(self) -> Deployment:
        return self.owner.deployment

    def values(self, score: UncertaintyScore, asked: Labelled | None) -> FloatArray:
        """``(B,)`` of a score; one of the supports alone is computed once.

        Args:
            score: to compute.
            asked: queries ``(B, n)``, for scores that look at them.

        Raises:
            ValueError: when there are none, and the score looks at them.
        """
        if not score.looks_at_queries:
            if score not in self._support_values:  # threads that ask at once find the same numbers
                self._support_values[score] = self._scored(score, None)
            return self._support_values[score]
        if asked is None:
            raise ValueError(f"score {score.name!r} looks at queries; expected the images that are to be classified")
        last = self._asked
        if last is None or last[0]() is not asked:
            last = self._asked = weakref.ref(asked), {}
        known = last[1]
        if score not in known:
            known[score] = self._scored(score, asked)
        return known[score]

    def _scored(self, score: UncertaintyScore, asked: Labelled | None) -> FloatArray:
        """By the router's own posterior and, where there are queries, its networks."""
        batch = self.batch if asked is None else replace(self.batch, query=asked)
        routed = RoutedBatch(
            self.owner.router.model,
            self.routed,
            batch,
            self.owner.bases[0] if len(self.owner.bases) == 1 else self.owner.bases,
            generator=self.generator(),
            predictive=self.deployment.predictive,
            members=lambda rule: self.members(rule, batch.query, self.routed),
        )
        found: FloatArray = routed.score(score).cpu().double().numpy()
        if len(self) == 1 or not routed.drew:
            return found
        parts = [None if asked is None else _of_task(asked, i) for i in range(len(self))]
        return np.concatenate([self.alone(i)._scored(score, part) for i, part in enumerate(parts)])

    def uncertainty(self, asked: Labelled | None) -> FloatArray:
        """U ``(B,)``, by the score that falling back is decided on."""
        return self.values(self.deployment.scorer, asked)

    def falls_back(self, asked: Labelled | None) -> BoolArray:
        """``(B,)``: whether predictions of these queries come from the fallback."""
        if self.deployment.never_falls_back:
            return np.zeros(len(self), dtype=bool)
        return ~accepted_tasks(self.uncertainty(asked), self.deployment.threshold)

    def risk(self, asked: Labelled | None) -> FloatArray:
        """``(B,)``; NaN for a deployment without a risk."""
        reliability = self.deployment.reliability
        return np.full(len(self), math.nan) if reliability is None else self.values(reliability.predictor, asked)

    def reliable(self, asked: Labelled | None) -> BoolArray:
        """``(B,)``: whether answers to these queries can be relied on."""
        reliability = self.deployment.reliability
        if reliability is None:
            return ~self.falls_back(asked)
        if reliability.tolerance == math.inf:
            return np.ones(len(self), dtype=bool)
        return np.asarray(accepted_tasks(self.risk(asked), reliability.tolerance))

    def misrouting(self) -> FloatArray:
        """``(B,)`` probability that the most trusted route is the wrong one; NaN where that is unknown."""
        calibration, doubt = self.deployment.misrouting, top_route_doubt(self.routed).clamp(0, 1).cpu().numpy()
        if calibration is not None:
            return calibration.probability(doubt)
        known = isinstance(self.routed, CatalogPosterior)
        return np.asarray(doubt if known else np.full(len(self), math.nan), dtype=np.float64)

    @property
    def accepted_rule(self) -> Answering:
        """What tasks use that do not fall back."""
        point = self.refinement is not None and self.refinement.posterior is None
        return REFINED if point else self.owner.rule

    @torch.no_grad()
    def probabilities(self, asked: Labelled, rule: Answering | None = None) -> Tensor:
        """Class probabilities ``(B, n, W)`` of queries ``(B, n)``, on the CPU.

        Args:
            asked: queries; those that its mask hides get any numbers.
            rule: default: the fallback for tasks that fall back on these queries, else :attr:`accepted_rule`.
        """
        if rule is None:
            falls_back = self.falls_back(asked)
            if not falls_back.any() or falls_back.all():
                rule = self.owner.fallback if falls_back.any() else self.accepted_rule
        if rule is not None:
            weights, members = self.members(rule, asked, self.posterior)
            return (weights[..., None, None] * members).sum(0).cpu()
        found = torch.empty(*asked.labels.shape, self.batch.max_way)
        for wanted, chosen in ((self.accepted_rule, ~falls_back), (self.owner.fallback, falls_back)):
            tasks = np.flatnonzero(chosen).tolist()
            part = asked.map(lambda tensor, tasks=tasks: tensor[tasks])  # type: ignore[misc]
            found[tasks] = self.take(tasks).probabilities(part, wanted).to(found)
        return found

    @torch.no_grad()
    def members(self, rule: Answering, asked: Labelled, posterior: RoutingPosterior) -> Members:
        """Weights ``(K, B)`` and class probabilities ``(K, B, n, W)`` of a rule's networks.

        Tasks with fewer networks than others have more of weight 0.
        """
        composed = self.networks(rule, posterior)
        if composed is not None:
            return self._networks.members(*composed, asked)
        each = map(self.alone, range(len(self)))  # one after the other: the networks of one are gone before the next
        parts = [one.members(rule, _of_task(asked, i), one.posterior) for i, one in enumerate(each)]
        weights, members = (pad_sequence([pair[k][:, 0] for pair in parts]) for k in (0, 1))
        return weights, members

    @torch.no_grad()
    def networks(self, rule: Answering, posterior: RoutingPosterior) -> tuple[ComposedNetworks, SupportHead] | None:
        """The networks of a rule and their heads, each once; None for tasks that have to be asked one by one."""
        key = rule, posterior is self.routed
        if key not in self._composed:
            if key not in self._mixtures:
                self._mixtures[key] = self._mixture(rule, posterior)
            mixture = self._mixtures[key]
            if mixture is None:
                return None
            networks = ComposedNetworks.of(mixture, self._bases(rule))
            self._composed.setdefault(key, (networks, self._networks.fit(networks)))
        return self._composed[key]

    def _mixture(self, rule: Answering, posterior: RoutingPosterior) -> Mixture | None:
        """The routings of a rule; None where it draws, and there are several tasks."""
        if isinstance(rule, str):
            if self.refinement is None:
                raise ValueError(
                    "rule is 'refined' and the task was not refined: call adapt(..., refine='frank_wolfe')"
                )
            return Mixture.one(self.refinement.coefficients.unsqueeze(0))
        generator = self.generator()
        before = generator.get_state()
        mixture = rule(posterior, self.batch, generator=generator)
        return mixture.merged() if len(self) == 1 or torch.equal(generator.get_state(), before) else None

    def _bases(self, rule: Answering) -> Sequence[Basis]:
        if isinstance(rule, str) and self.refinement is not None:
            return [self.refinement.basis(self.owner.router.model, self.owner.deployed_basis)]
        return list(self.owner.bases)

    def generator(self) -> torch.Generator:
        """At the seed."""
        return torch.Generator(device=self.batch.way.device).manual_seed(self.seed)


def _of_task(asked: Labelled, task: int) -> Labelled:
    return asked.map(lambda tensor: tensor[task : task + 1])
