"""What a baseline is and what it is made of: a source library, the network that runs it, and a prototype head.

Library -> a baseline's task parameters -> class probabilities of the queries. Every baseline is a function from a batch
to probabilities, so :func:`pyro_smat.inference.evaluation.evaluate` runs it beside the router on the same episodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.reference import PRETRAINED_SCALE, query_losses
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.heads import Metric, leave_one_out_loss, prototype_logits
from pyro_smat.registry import Remembered
from pyro_smat.sources import SourceLibrary

Objective = Callable[[Tensor], Tensor]  # task parameters (B, d) -> losses (B,), each of its own row only


@dataclass(frozen=True)
class ComposedLibrary:
    """A library with the network and the head that run whatever is composed from it.

    Attributes:
        network: runs task parameters.
        library: the R sources; source 0 is the fallback.
        metric, scale: of the prototype head; by default as sources are pretrained.
        device: where sources and batches are.
    """

    network: TaskNetwork
    library: SourceLibrary
    metric: Metric = "cosine"
    scale: float = PRETRAINED_SCALE
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, model: RoutedModel) -> ComposedLibrary:
        """The sources of a model, where it is, with its network and its metric."""
        library = SourceLibrary(model.source_names, model.source_basis, model.network.space)
        return cls(model.network, library, metric=model.metric, device=model.source_basis.device)

    @cached_property
    def sources(self) -> Tensor:
        """``(R, d)`` on the device."""
        return self.library.basis.to(self.device)

    @cached_property
    def trainable(self) -> Tensor:
        """``(d,)`` bool on the device: False at running statistics, which no baseline extrapolates or fits."""
        return self.network.space.trainable().to(self.device)

    @cached_property
    def model(self) -> RoutedModel:
        """The library as a model without experts, which the objectives of Frank-Wolfe are made of."""
        blocks = len(self.network.space.block_names)
        model = RoutedModel(
            self.network,
            self.library,
            prior=LogisticNormalPrior(len(self.library), num_blocks=blocks),
            metric=self.metric,
            scale=self.scale,
            compute_dtype=self.library.basis.dtype,
        )
        return model.to(self.device).eval()

    @torch.no_grad()
    def source_probabilities(self, batch: EpisodeBatch) -> Tensor:
        """Class probabilities ``(B, R, Q, W)`` of every source by itself, from features where the batch has them.

        Those of the batch that was asked for last are kept.
        """
        if not self._last or self._last[0] is not batch:
            support, query = self.source_features(batch)
            logits = prototype_logits(
                support,
                batch.support.labels.unsqueeze(1),
                batch.support.mask.unsqueeze(1),
                query,
                batch.class_mask.unsqueeze(1),
                self.scale,
                self.metric,
            )
            self._last[:] = [batch, logits.softmax(-1)]
        probabilities: Tensor = self._last[1]
        return probabilities

    def forget(self) -> None:
        """Predict anew when asked for the same batch: for whoever takes the time of it."""
        self._last.clear()

    @torch.no_grad()
    def source_features(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Features ``(B, R, S, f)`` and ``(B, R, Q, f)`` under every source, those that the batch has where it does."""
        frozen = SourceFeatures(self.network, self.sources)
        support, query = (
            frozen.of(part.images, part.rows) if part.features is None else part.features
            for part in (batch.support, batch.query)
        )
        return _wide(support), _wide(query)

    @cached_property
    def _last(self) -> list[Any]:
        """A batch and the probabilities of its sources, or nothing."""
        return []

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Features ``(B, n, f)`` of images ``(B, n, *input)`` under task parameters ``(B, d)``."""
        return _wide(self.network(theta, images))

    def logits(self, theta: Tensor, batch: EpisodeBatch) -> Tensor:
        """Class logits ``(B, Q, W)`` of the queries under task parameters ``(B, d)``."""
        shots = batch.support.images.shape[1]
        features = self.features(theta, torch.cat([batch.support.images, batch.query.images], dim=1))
        return prototype_logits(
            features[:, :shots],
            batch.support.labels,
            batch.support.mask,
            features[:, shots:],
            batch.class_mask,
            self.scale,
            self.metric,
        )

    def support_loss(self, theta: Tensor, batch: EpisodeBatch) -> Tensor:
        """Leave-one-out prototype loss of the support, ``(B,)`` in nats per shot."""
        return leave_one_out_loss(
            self.features(theta, batch.support.images),
            batch.support.labels,
            batch.support.mask,
            batch.class_mask,
            self.scale,
            self.metric,
        )

    def query_loss(self, theta: Tensor, batch: EpisodeBatch) -> Tensor:
        """Mean cross-entropy of the queries, ``(B,)`` in nats: for hindsight and for validation episodes only."""
        return query_losses(self.logits(theta, batch), batch)


class Baseline(Remembered, ABC):
    """Something else that a user could do with the same library; a function from episodes to probabilities.

    Attributes:
        name: its row in tables.
        is_reference: whether it sees what nobody can know, so that it is no competitor.
        in_report: whether reports give it a row; evaluations always have it.
    """

    name: str
    is_reference: ClassVar[bool] = False
    in_report: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        """Class probabilities ``(B, Q, W)`` of a batch with features of its supports."""


@dataclass(frozen=True)
class ParameterBaseline(Baseline):
    """A baseline that makes one network of each episode.

    Attributes:
        composed: the library.
    """

    composed: ComposedLibrary = field(repr=False)

    @abstractmethod
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        """Task parameters ``(B, d)``, without gradient."""

    @torch.no_grad()
    def features(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Features ``(B, S, f)`` of the support and ``(B, Q, f)`` of the queries under these networks."""
        images = torch.cat([batch.support.images, batch.query.images], dim=1)
        features = self.composed.features(self.parameters(batch), images)
        shots = batch.support.images.shape[1]
        return features[:, :shots], features[:, shots:]

    @torch.no_grad()
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.logits(self.parameters(batch), batch).softmax(-1)


def network_of(start: Baseline, what: str) -> ParameterBaseline:
    """A baseline that another one starts from.

    Raises:
        ValueError: for one that makes no network.
    """
    if not isinstance(start, ParameterBaseline):
        raise ValueError(
            f"{what} starts from the network of another baseline, and {start.name!r} makes none; expected one that "
            "does, e.g. 'best_source'"
        )
    return start


def value_and_gradient(objective: Objective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(B,)`` of task parameters ``(B, d)`` and the gradient ``(B, d)`` of each; works under no_grad too."""
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        losses = objective(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def _wide(features: Tensor) -> Tensor:
    """In float32 at least."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
