"""Uniform mixing: the average of all sources in weight space, whatever the posterior; a yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.registry import register


@register("decision_rule", "uniform_mixing")
@dataclass(frozen=True)
class UniformMixing(DecisionRule):
    """One network: equal weight on every source, no expert."""

    label: ClassVar[str] = "uniform mixing"

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        coefficients, count = torch.zeros_like(posterior.mean), posterior.source_weights.shape[-1]
        coefficients[..., :count] = 1.0 / count
        return Mixture.one(coefficients)
