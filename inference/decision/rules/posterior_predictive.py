r"""Posterior predictive: the average of the predictions of K routings from the posterior.

.. math:: p(y | x, S) \approx \frac1K \sum_k p(y | x, S, c_k), \qquad c_k \sim q(c | S)

Exact, and without draws, for a catalog of at most K routings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import CatalogPosterior, RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule, check_positive
from pyro_smat.registry import register


@register("decision_rule", "posterior_predictive", "ensemble")
@dataclass(frozen=True)
class PosteriorPredictive(DecisionRule):
    """K random routings with equal weights, or all of a small catalog by their probabilities.

    Attributes:
        num_samples: K, at least 1.

    Raises:
        ValueError: for fewer than one.
    """

    num_samples: int = 8
    label: ClassVar[str] = "routed, posterior predictive"

    def __post_init__(self) -> None:
        check_positive("num_samples", self.num_samples)

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        if isinstance(posterior, CatalogPosterior) and posterior.logits.shape[-1] <= self.num_samples:
            return Mixture(*posterior.top(self.num_samples))
        return Mixture.equal(posterior.sample(self.num_samples, generator))
