"""Variance of the coefficients under the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.rules.rule import check_positive
from pyro_smat.inference.decision.scores.score import UncertaintyScore, mean_over_blocks
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "variance")
@dataclass(frozen=True)
class Variance(UncertaintyScore):
    """Variance summed over coefficients, mean over blocks, from draws.

    Attributes:
        num_samples: at least 2.

    Raises:
        ValueError: for fewer than two.
    """

    num_samples: int = 64

    def __post_init__(self) -> None:
        check_positive("num_samples", self.num_samples)
        if self.num_samples < 2:
            raise ValueError(f"num_samples is {self.num_samples}; expected at least 2 to have a variance")

    def __call__(self, routed: RoutedBatch) -> Tensor:
        drawn = routed.posterior.sample(self.num_samples, routed.generator)
        return in_float64(mean_over_blocks(drawn.var(0).sum(-1), routed.num_blocks))
