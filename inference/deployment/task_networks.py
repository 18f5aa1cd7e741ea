"""The networks of one task: routings of a decision rule -> composed networks -> class probabilities of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.routed_batch import Members
from pyro_smat.inference.decision.rules import DecisionRule
from pyro_smat.inference.deployment.refinement import Refinement
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.networks.support_head import SupportHead

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.classifier import RoutedClassifier

REFINED = "refined"  # the rule that is the network at the refined coefficients


@dataclass(frozen=True)
class ComposedNetworks:
    """Networks of a rule, for each of m samples of the gates the same K routings.

    Attributes:
        theta: ``(m K, d)``.
        names: of the m K networks: the sample of the gates, and the bytes of the routing.
        head: of each, fitted on the support, ``(m K, 1)``.
        weights: ``(K, 1)``.
        mass: of the posterior that they hold; None for draws.
    """

    theta: Tensor
    names: tuple[tuple[int, bytes], ...]
    head: SupportHead
    weights: Tensor
    mass: float | None


class TaskNetworks:
    """Composes the networks of a task's rules, each once; of threads that ask at once, all get the same."""

    def __init__(
        self,
        owner: RoutedClassifier,
        batch: EpisodeBatch,
        routed: RoutingPosterior,
        *,
        seed: int,
        refinement: Refinement | None = None,
        shared: NetworkFeatures | None = None,
    ) -> None:
        self._owner, self._batch, self._routed, self._shared = owner, batch, routed, shared
        self._seed, self._refinement = seed, refinement
        self._composed: dict[tuple[DecisionRule | str, bool], ComposedNetworks] = {}

    def members(self, rule: DecisionRule | str, asked: Labelled, posterior: RoutingPosterior) -> Members:
        """Weights ``(K, 1)`` and class probabilities ``(K, 1, n, W)``, averaged over the samples of the gates."""
        found = self.of(rule, posterior)
        asked = asked.map(lambda tensor: tensor.to(found.theta.device))
        queries = self._features(found.names, found.theta, asked.images, asked.rows).float()
        probabilities = found.head.logits(queries.unsqueeze(1)).softmax(-1)  # (m K, 1, n, W)
        return found.weights, probabilities.unflatten(0, (-1, len(found.weights))).mean(0)

    def _features(self, names: Sequence[tuple[int, bytes]], theta: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        """``(K, n, f)`` of images under the networks theta ``(K, d)``; looked up where tasks share these."""
        if self._shared is None:
            return features_of(self._owner.router.model.network, theta, images)
        return torch.stack([self._shared.of(name, row, images, rows) for name, row in zip(names, theta, strict=True)])

    def _support_features(self, names: Sequence[tuple[int, bytes]], rows: Tensor, theta: Tensor) -> Tensor:
        """``(K, S, f)`` of the support under the networks theta ``(K, d)`` of routings ``(K, [L,] C)``.

        A routing that is one source alone has them already: the router has looked at all sources.
        """
        support = self._batch.support
        assert support.features is not None
        known = pure_sources(rows, len(self._owner.source_names))
        features = support.features.new_empty(len(rows), *support.features.shape[2:]).float()
        features[known >= 0] = support.features[0, known[known >= 0]].float()
        if (known < 0).any():
            mixed = [name for name, source in zip(names, known.tolist(), strict=True) if source < 0]
            found = self._features(mixed, theta[known < 0], support.images[0], support.rows[0])
            features[known < 0] = found.float()
        return features

    def of(self, rule: DecisionRule | str, posterior: RoutingPosterior) -> ComposedNetworks:
        """The networks of a rule, composed once; routings that are drawn twice are one network."""
        key = rule, posterior is self._routed
        if key not in self._composed:
            owner = self._owner
            if rule == REFINED:
                if self._refinement is None:
                    raise ValueError(
                        "rule is 'refined' and the task was not refined: call adapt(..., refine='frank_wolfe')"
                    )
                mixture = Mixture.one(self._refinement.coefficients.unsqueeze(0))
                bases: Sequence[Basis] = [self._refinement.basis(owner.router.model, owner.deployed_basis)]
            else:
                assert isinstance(rule, DecisionRule)
                mixture = rule(
                    posterior,
                    self._batch,
                    generator=torch.Generator(device=self._batch.way.device).manual_seed(self._seed),
                ).merged()
                bases = list(owner.bases)
            space = owner.router.library.space
            rows = mixture.coefficients[:, 0]
            theta = torch.cat([compose(rows, basis, space) for basis in bases])
            names = tuple((m, row.cpu().numpy().tobytes()) for m in range(len(bases)) for row in rows)
            support = self._support_features(names, rows.repeat(len(bases), *(1,) * (rows.ndim - 1)), theta)
            head = owner.router.model.fit_head(support.unsqueeze(1), self._batch)
            return self._composed.setdefault(
                key,
                ComposedNetworks(
                    theta, names, head, mixture.weights, None if mixture.mass is None else float(mixture.mass[0])
                ),
            )
        return self._composed[key]


def pure_sources(rows: Tensor, num_sources: int) -> Tensor:
    """The source that a routing ``(K, [L,] C)`` is and nothing else, ``(K,)``; -1 where it is none."""
    flat = rows if rows.ndim == 2 else rows.mean(1)
    weight, source = flat[:, :num_sources].max(-1)
    only = (weight == 1) & (flat[:, num_sources:] == 0).all(-1)
    return torch.where(only, source, -1)


def features_of(network: TaskNetwork, theta: Tensor, images: Tensor) -> Tensor:
    """Features ``(K, n, f)`` of images ``(n, C, H, W)`` under networks ``(K, d)``.

    On a CPU one network after the other: convolutions with a weight for each task are slower there than as many plain
    ones.
    """
    if theta.device.type == "cpu":
        return torch.stack([network(row, images) for row in theta])
    return network(theta, images.expand(len(theta), *images.shape))
