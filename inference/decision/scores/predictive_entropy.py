"""Predictive entropy: how unsure the answers to the queries are."""

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


@register("uncertainty_score", "predictive_entropy")
@dataclass(frozen=True)
class PredictiveEntropy(UncertaintyScore):
    """Entropy of the posterior predictive's answer to a query, mean over queries, in nats.

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
        answers = routed.probabilities(routed.predictive(self.num_samples))
        return mean_over_queries(torch.special.entr(answers).sum(-1), routed.batch.query.mask)
