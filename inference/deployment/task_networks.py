"""The networks of tasks that were routed together: routings of a decision rule -> networks -> class probabilities.

A network that several tasks run, such as one of a catalog, sees the images of all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.routed_batch import Members
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.composition import compose
from pyro_smat.networks.features import BATCH_IMAGES, DEVICE_BATCH_IMAGES
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.networks.support_head import SupportHead

if TYPE_CHECKING:
    from pyro_smat.inference.deployment.adapting import TaskRouter


@dataclass(frozen=True)
class ComposedNetworks:
    """Networks of a mixture: for each of m samples of the experts' gates, K routings of each of B tasks.

    Attributes:
        routings: the U different ones, ``(U, [L,] C)``.
        index: which of them each task runs, ``(K, B)``.
        names: of the m U networks: the sample of the gates, and the bytes of the routing.
        bases: m of them, ``(C, d)`` each.
        weights: ``(K, B)``.
        mass: ``(B,)`` of the posterior that they hold; None for draws.
        kept: the parameters ``(m U, d)`` of a single task, once they are composed; tasks that are routed together
            compose theirs when they run, so that memory does not grow with the number of tasks.
    """

    routings: Tensor
    index: Tensor
    names: tuple[tuple[int, bytes], ...]
    bases: Sequence[Basis]
    weights: Tensor
    mass: Tensor | None
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, mixture: Mixture, bases: Sequence[Basis]) -> ComposedNetworks:
        """The networks of a mixture, equal routings of any tasks once."""
        routings, index = mixture.coefficients.flatten(0, 1).unique(dim=0, return_inverse=True)
        names = tuple((m, row.tobytes()) for m in range(len(bases)) for row in routings.cpu().numpy())
        return cls(routings, index.view(mixture.weights.shape), names, bases, mixture.weights, mixture.mass)


class TaskNetworks:
    """Runs the networks of B tasks with as many shots each.

    Args:
        owner: the router.
        batch: the tasks, with support features.
        shared: features of a pool under networks that many tasks use.
    """

    def __init__(self, owner: TaskRouter, batch: EpisodeBatch, shared: NetworkFeatures | None = None) -> None:
        self._owner, self._batch, self._shared = owner, batch, shared

    def fit(self, networks: ComposedNetworks) -> SupportHead:
        """The head of every network on the support of its task, ``(m K, B)``."""
        support = self._batch.support
        assert support.features is not None
        known = pure_sources(networks.routings, len(self._owner.source_names))  # the router has looked at all sources
        features = self._features(networks, support, known.tolist())
        return self._owner.router.model.fit_head(features, self._batch)

    def members(self, networks: ComposedNetworks, head: SupportHead, asked: Labelled) -> Members:
        """Weights ``(K, B)`` and class probabilities ``(K, B, n, W)``, averaged over the samples of the gates."""
        queries = self._features(networks, asked, [-1] * len(networks.routings))
        probabilities = head.logits(queries, asked.mask).softmax(-1)  # (m K, B, n, W)
        return networks.weights, probabilities.unflatten(0, (-1, len(networks.index))).mean(0)

    def _features(self, networks: ComposedNetworks, part: Labelled, known: Sequence[int]) -> Tensor:
        """``(m K, B, n, f)`` float32 of the images of B tasks under their networks.

        Args:
            networks: that are run.
            part: images ``(B, n, C, H, W)``.
            known: of each routing the source whose features ``part`` has, -1 where it has none.
        """
        assert self._batch.support.features is not None
        count, device = len(networks.routings), part.images.device
        width = self._batch.support.features.shape[-1]
        shape = (len(networks.bases), *networks.index.shape, part.images.shape[1], width)
        found, together = torch.empty(shape, dtype=torch.float32, device=device), None
        if len(self._batch) == 1 and device.type != "cpu" and self._shared is None and max(known) < 0:
            theta = self.theta(networks)  # an accelerator runs the networks of a task at once
            together = self._owner.router.model.network(theta, part.images.expand(len(theta), *part.images.shape[1:]))
        for number, name in enumerate(networks.names):
            m, routing = divmod(number, count)
            rank, task = (networks.index == routing).nonzero(as_tuple=True)  # the slots (K, B) that it fills
            if together is not None:
                found[m, rank, task] = together[number].float()
            elif known[routing] >= 0:
                assert part.features is not None
                found[m, rank, task] = part.features[task, known[routing]].float()
            else:
                asked, place = task.unique(return_inverse=True)
                run = self._run(networks, number, name, part.images[asked], part.rows[asked])
                found[m, rank, task] = run.float()[place]
        return found.flatten(0, 1)

    def _run(
        self, networks: ComposedNetworks, number: int, name: tuple[int, bytes], images: Tensor, rows: Tensor
    ) -> Tensor:
        """``(b, n, f)`` of images ``(b, n, C, H, W)`` under one network; looked up where tasks share it."""
        if self._shared is not None:
            return self._shared.of(name, lambda: self.theta(networks, number), images, rows)
        theta = self.theta(networks, number)
        at_once = BATCH_IMAGES if images.device.type == "cpu" else DEVICE_BATCH_IMAGES
        network = self._owner.router.model.network
        features = torch.cat([network(theta, part) for part in images.flatten(0, 1).split(at_once)])
        return features.unflatten(0, images.shape[:2])

    def theta(self, networks: ComposedNetworks, number: int | None = None) -> Tensor:
        """``(d,)`` of one of the networks; of all, ``(m U, d)``."""
        space, count = self._owner.router.library.space, len(networks.routings)
        if len(self._batch) > 1:
            assert number is not None
            m, routing = divmod(number, count)
            return compose(networks.routings[routing], networks.bases[m], space)
        if not networks.kept:
            networks.kept.append(torch.cat([compose(networks.routings, basis, space) for basis in networks.bases]))
        return networks.kept[0] if number is None else networks.kept[0][number]


def pure_sources(rows: Tensor, num_sources: int) -> Tensor:
    """The source that a routing ``(K, [L,] C)`` is and nothing else, ``(K,)``; -1 where it is none."""
    flat = rows if rows.ndim == 2 else rows.mean(1)
    weight, source = flat[:, :num_sources].max(-1)
    only = (weight == 1) & (flat[:, num_sources:] == 0).all(-1)
    return torch.where(only, source, -1)
