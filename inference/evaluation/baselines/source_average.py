r"""Averages of the predictions of ALL sources, with equal weights or weighted by the support; nothing is trained.

.. math:: p(y | x) = \sum_r w_r \, p_r(y | x), \qquad w_r = 1/R \quad\text{or}\quad w \propto e^{-\ell_r / T}

:math:`\ell_r` is the leave-one-out support loss of source r. Most of what routing wins over one source is the gain of
averaging predictions, so a table without these flatters the router.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.registry import register


@register("baseline", "source_average")
@dataclass(frozen=True)
class SourceAverage(Baseline):
    """The mean of the predictions of all sources."""

    composed: ComposedLibrary = field(repr=False)
    name: str = "average of all sources"

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.source_probabilities(batch).mean(1)


@register("baseline", "weighted_source_average")
@dataclass(frozen=True)
class WeightedSourceAverage(Baseline):
    """The predictions of all sources, weighted by how well each does on the support.

    Attributes:
        temperature: T > 0, in nats per shot; towards 0 it becomes the best source by support loss.

    Raises:
        ValueError: for a temperature that is not > 0.
    """

    composed: ComposedLibrary = field(repr=False)
    temperature: float = 1.0
    name: str = "average of all sources, weighted by support loss"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}; expected a number of nats > 0")

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        weights = (-support_losses(batch, self.composed.metric) / self.temperature).softmax(-1)  # (B, R)
        probabilities = self.composed.source_probabilities(batch)
        return (weights.to(probabilities)[..., None, None] * probabilities).sum(1)
