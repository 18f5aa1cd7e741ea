"""MAP: the network at the most probable routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.registry import register


@register("decision_rule", "map")
@dataclass(frozen=True)
class Map(DecisionRule):
    """One network: at the posterior mode."""

    label: ClassVar[str] = "routed, MAP"

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        return Mixture.one(posterior.mode)
