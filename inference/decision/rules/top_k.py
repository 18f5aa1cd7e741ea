"""Top-k: a sparse stand-in for the posterior, without draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule, check_positive
from pyro_smat.registry import register


@register("decision_rule", "top_k", "top-k")
@dataclass(frozen=True)
class TopK(DecisionRule):
    """The k most probable routings of a catalog, weighted; on the simplex one network with the k largest weights.

    Attributes:
        k: at least 1.

    Raises:
        ValueError: for a k below 1.
    """

    k: int = 2
    label: ClassVar[str] = "routed, top-k"

    def __post_init__(self) -> None:
        check_positive("k", self.k)

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        return Mixture(*posterior.top(self.k))
