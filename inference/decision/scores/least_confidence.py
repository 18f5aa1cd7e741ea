"""Least confidence: how far the most probable routing is from certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "least_confidence", "confidence")
@dataclass(frozen=True)
class LeastConfidence(UncertaintyScore):
    """1 - the largest probability of what the posterior is torn between: rows of the catalog, or sources."""

    def __call__(self, routed: RoutedBatch) -> Tensor:
        return 1.0 - in_float64(routed.posterior.routing_probabilities().amax(-1))
