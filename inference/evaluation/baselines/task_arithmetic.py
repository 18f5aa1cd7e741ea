r"""Task arithmetic: the fallback plus a factor times the sum of all task vectors, one network for all tasks.

.. math:: \theta = \theta^{(0)} + \lambda \sum_{r \ge 1} (\theta^{(r)} - \theta^{(0)})

Source: Ilharco et al. 2023, "Editing models with task arithmetic", section 4; lambda is chosen on validation episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.validation import lowest_validation_loss
from pyro_smat.registry import register

FACTORS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class TaskArithmetic(ParameterBaseline):
    """At one factor. Running statistics stay those of the fallback: an extrapolated variance may be negative.

    Attributes:
        factor: lambda, finite.
    """

    factor: float
    name: str = "task arithmetic"

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise ValueError(f"factor is {self.factor}; expected a finite number, e.g. 0.3")

    def parameters(self, batch: EpisodeBatch) -> Tensor:
        fallback = self.composed.sources[0]
        direction = torch.where(self.composed.trainable, (self.composed.sources - fallback).sum(0), 0.0)
        return (fallback + self.factor * direction).expand(len(batch), -1)


@register("baseline", "task_arithmetic")
def fit_task_arithmetic(
    composed: ComposedLibrary, validation: Sequence[EpisodeBatch], factors: Sequence[float] = FACTORS
) -> TaskArithmetic:
    """At the factor of lowest validation loss; with 0 among the factors never worse there than the fallback.

    Raises:
        ValueError: for no factors, one that is not finite, or no validation episodes.
    """
    return lowest_validation_loss([TaskArithmetic(composed, factor) for factor in factors], validation)
