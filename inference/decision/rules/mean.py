"""Mean: the network at the posterior mean of the coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.registry import register


@register("decision_rule", "mean")
@dataclass(frozen=True)
class Mean(DecisionRule):
    """One network: at the posterior mean."""

    label: ClassVar[str] = "routed, posterior mean"

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        return Mixture.one(posterior.mean)
