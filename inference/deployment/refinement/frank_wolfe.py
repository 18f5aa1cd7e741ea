"""FrankWolfe: a few steps on the support loss from the router's weights, within a budget of sources.

Gradient-free in the sense of the multi-source paper (section 6): no backward pass reaches a source. A step needs one
backward pass through the composed network, in its own parameters, and R inner products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import keep_largest
from pyro_smat.inference.deployment.refinement.mode import Refinement, check_count
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.registry import register
from pyro_smat.solvers import SimplexObjective, SimplexSolution, minimize_on_simplex

FrankWolfeMethod = Literal["vanilla", "away", "pairwise", "blended"]


@register("refinement", "frank_wolfe", "frank-wolfe")
@dataclass(frozen=True)
class FrankWolfe:
    """Frank-Wolfe steps with line search on the support loss; the experts' coefficients stay.

    The better of start and end is kept, so the support loss is never above that of the start. With ``max_active`` the
    start is the router's weights truncated to so many sources, which may cost more than the steps win back.

    Args:
        steps: at most so many, >= 0.
        max_active: sources with a weight, in every block; None: all may have one.
        tolerance: gap at which to stop, in nats per shot.
        method: of :func:`pyro_smat.solvers.minimize_on_simplex`. A router's weights are all positive, and "vanilla"
            steps shrink all of them at once, in every block; the others move one source out at a time, and win from
            some tens of steps on.

    Source: multi-source paper, equation 6 and section 6.

    Raises:
        ValueError: for values out of range.
    """

    steps: int = 5
    max_active: int | None = None
    tolerance: float = 1e-4
    method: FrankWolfeMethod = "vanilla"
    name: ClassVar[str] = "frank_wolfe"

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        check_count("max_active", self.max_active, 1)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance}; expected a gap of at least 0, in nats per shot")
        if self.method not in get_args(FrankWolfeMethod):
            raise ValueError(f"method is {self.method!r}; expected one of {get_args(FrankWolfeMethod)}")

    def refine(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, start: Tensor) -> Refinement:
        objective = SupportObjective(model, basis, batch, start)
        before = objective.value(objective.start)
        first, note = objective.start, ""
        if self.max_active is not None:
            first = keep_largest(torch.from_numpy(first), self.max_active).numpy()
            note = f"support loss {objective.value(first):.3f} when truncated to {self.max_active} source(s)"
        found = search(objective, first, self.steps, self.max_active, self.tolerance, self.method)
        return Refinement(
            self.name,
            objective.coefficients(found.weights),
            before,
            objective.value(found.weights),
            len(found.active),
            found.gap,
            found.certificate,
            note,
        )


def search(
    objective: SimplexObjective,
    start: FloatArray,
    steps: int,
    max_active: int | None = None,
    tolerance: float = 1e-4,
    method: FrankWolfeMethod = "vanilla",
) -> SimplexSolution:
    """The best of the points that so many steps visit, the start ``([L,] R)`` among them."""
    return minimize_on_simplex(
        objective,
        method=method,
        start=start,
        tolerance=tolerance,
        max_iterations=steps + 1,  # gradients: the last one is for the gap
        max_active=max_active,
    )


def descend(objective: SimplexObjective, start: FloatArray, steps: int) -> FloatArray:
    """Weights ``([L,] R)`` after so many steps, never above the start."""
    return search(objective, start, steps).weights
