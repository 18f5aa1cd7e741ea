r"""Posterior predictive: the average of the predictions of the routings of the posterior.

.. math:: p(y | x, S) \approx \sum_{c \in A} q(c | S)\, p(y | x, S, c) \Big/ \sum_{c \in A} q(c | S)

Over a catalog, A is the smallest set of routings that holds a stated mass of the posterior: exact up to the rest, and
without draws. On the simplex, and over a catalog too large to enumerate, A is K random routings with equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import CatalogPosterior, RoutingPosterior
from pyro_smat.guides.catalog import ENUMERATION_LIMIT
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule, check_positive
from pyro_smat.registry import register


@register("decision_rule", "posterior_predictive", "ensemble")
@dataclass(frozen=True)
class PosteriorPredictive(DecisionRule):
    """The likeliest routings of a catalog by their probabilities, or K random ones with equal weights.

    Attributes:
        num_samples: K, at least 1, of posteriors that have no list of at most 256 routings.
        mass: of a catalog's posterior that the networks hold, in (0, 1]; 1 runs all of the catalog.

    Raises:
        ValueError: for fewer than one sample, or a mass outside (0, 1].
    """

    num_samples: int = 8
    mass: float = 0.99
    label: ClassVar[str] = "routed, posterior predictive"

    def __post_init__(self) -> None:
        check_positive("num_samples", self.num_samples)
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is {self.mass!r}; expected a share of the posterior in (0, 1]")

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        if isinstance(posterior, CatalogPosterior) and posterior.logits.shape[-1] <= ENUMERATION_LIMIT:
            return self._likeliest(posterior)
        return Mixture.equal(posterior.sample(self.num_samples, generator))

    def _likeliest(self, posterior: CatalogPosterior) -> Mixture:
        """Tasks that need fewer networks than others repeat their first one with weight 0."""
        rows, weights = posterior.top(posterior.logits.shape[-1])  # by falling probability
        before = weights.cumsum(0) - weights
        kept = (before < self.mass) | (self.mass == 1)  # where all are wanted, sums that round to 1 drop none
        kept[0] = True
        size = int(kept.sum(0).max())
        rows, weights, kept = rows[:size], weights[:size], kept[:size]
        event = (1,) * (rows.ndim - 2)
        rows = torch.where(kept.view(*kept.shape, *event), rows, rows[:1])
        weights = weights * kept
        held = weights.sum(0)
        return Mixture(rows, weights / held, held)
