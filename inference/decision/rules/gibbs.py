"""Gibbs: the network at one routing drawn from the posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.registry import register


@register("decision_rule", "gibbs")
@dataclass(frozen=True)
class Gibbs(DecisionRule):
    """One network: at a draw."""

    label: ClassVar[str] = "routed, one draw (Gibbs)"

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        return Mixture.equal(posterior.sample(1, generator))
