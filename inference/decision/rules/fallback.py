"""Fallback: a fixed routing, whatever the posterior; what a task uses whose routing is not sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.named_routings import SOURCE_0
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.registry import register


@register("decision_rule", "fallback")
@dataclass(frozen=True, eq=False)
class Fallback(DecisionRule):
    """One network: at a routing that has a name.

    Attributes:
        named_routings: name -> coefficients ``([L,] C)``, see
            :class:`~pyro_smat.inference.decision.named_routings.NamedRoutings`.
        routing: "source 0", "prior mean", a source, or a routing of the catalog.

    Raises:
        ValueError: for a routing that has not been named.
    """

    named_routings: Mapping[str, Tensor] = field(repr=False)
    routing: str = SOURCE_0
    label: ClassVar[str] = "fallback"

    def __post_init__(self) -> None:
        self.named_routings[self.routing]  # refuses others

    def __call__(
        self,
        posterior: RoutingPosterior,
        batch: EpisodeBatch | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Mixture:
        mean = posterior.mean
        return Mixture.one(self.named_routings[self.routing].to(mean).expand_as(mean))
