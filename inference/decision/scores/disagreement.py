"""Disagreement: the part of the predictive entropy that comes from the doubt about the routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pyro_smat.inference.decision.rules.posterior_predictive import PosteriorPredictive
from pyro_smat.inference.decision.scores.score import UncertaintyScore, mean_over_queries
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "disagreement")
@dataclass(frozen=True)
class Disagreement(UncertaintyScore):
    """Mutual information of a query's answer and the routing, mean over queries, in nats.

    Attributes:
        num_samples: of the posterior predictive, at least 1; None: as it is deployed.

    Raises:
        ValueError: for fewer than one.
    """

    num_samples: int | None = None
    looks_at_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_samples is not None:
            PosteriorPredictive(self.num_samples)  # checks it

    def __call__(self, routed: RoutedBatch) -> Tensor:
        weights, members = routed.members(routed.predictive(self.num_samples))
        total = torch.special.entr((weights[..., None, None] * members).sum(0)).sum(-1)  # (B, Q)
        within = (weights.unsqueeze(-1) * torch.special.entr(members).sum(-1)).sum(0)
        return mean_over_queries(total - within, routed.batch.query.mask)
