"""Hindsight: the best that a library could have done for each task, had it seen the query labels.

No method, but the yardsticks between which a router stands: what it loses to them is its amortisation gap plus what
the support cannot tell. Their names in tables say that they cheat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.refinement.frank_wolfe import descend
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.inference.evaluation.baselines.baseline import ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.support_mixture import best_start, mixed, mixture_objectives
from pyro_smat.inference.objective.reference import query_losses
from pyro_smat.registry import register


@register("baseline", "hindsight_source")
@dataclass(frozen=True)
class HindsightSource(ParameterBaseline):
    """The source of lowest query loss."""

    composed: ComposedLibrary = field(repr=False)
    name: str = "hindsight: best source (sees the query labels)"
    is_reference: ClassVar[bool] = True

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        losses = [self.composed.query_loss(source.expand(len(batch), -1), batch) for source in self.composed.sources]
        return self.composed.sources[torch.stack(losses).argmin(0)]


@register("baseline", "hindsight_mixture")
@dataclass(frozen=True)
class HindsightMixture(ParameterBaseline):
    """The mixture that Frank-Wolfe finds on the query loss, from the best source or the uniform mixture.

    Never worse than the best source in hindsight; a local optimum, so an upper bound on the loss of the best mixture.

    Attributes:
        steps: pairwise Frank-Wolfe steps, at least 1.
    """

    composed: ComposedLibrary = field(repr=False)
    steps: int = 10
    name: str = "hindsight: best mixture (sees the query labels)"
    is_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1 Frank-Wolfe step")

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        objectives = mixture_objectives(self.composed, batch, kind=QueryObjective)
        return mixed(objectives, [descend(one, best_start(one), self.steps) for one in objectives])


class QueryObjective(SupportObjective):
    """Mean query loss of one episode as a function of source weights, in place of the support loss."""

    def loss(self, theta: Tensor) -> Tensor:
        """Query loss of a network theta ``(d,)``, in nats per query."""
        alone = theta.new_ones(1, 1)
        return query_losses(self.model.logits(alone, self._batch, theta.unsqueeze(0)), self._batch)[0]
