"""Entropy of the routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "entropy")
@dataclass(frozen=True)
class Entropy(UncertaintyScore):
    """Shannon entropy, in nats, of what the posterior is torn between: rows of the catalog, or sources."""

    def __call__(self, routed: RoutedBatch) -> Tensor:
        return in_float64(routed.posterior.entropy())
