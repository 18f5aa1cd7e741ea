"""Support loss: the best that a single source can do on the support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "support_loss")
@dataclass(frozen=True)
class SupportLoss(UncertaintyScore):
    """Leave-one-out loss of the best single source, in nats per shot."""

    def __call__(self, routed: RoutedBatch) -> Tensor:
        return routed.support_loss.amin(1)
