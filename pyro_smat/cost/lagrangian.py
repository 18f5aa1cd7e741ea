r"""The Lagrangian: routings of a finite list by loss + lambda cost, and the lambda at which the mean cost is a budget.

Losses of candidates (on the support, or on validation queries) and their costs -> the routing of every task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.float64 import in_float64

TIE = 1e-12  # relative: totals that differ by less are equal
ROUNDING = 1e-9  # relative: what sums of costs may exceed a budget by


@dataclass(frozen=True)
class BudgetedChoice:
    """Which routing every task takes under a budget.

    Attributes:
        weight: lambda, loss per unit of cost; 0 where the budget does not bind.
        budget: in units of cost.
        chosen: ``(B,)`` long, rows of the list.
        losses, costs: ``(B,)`` of the chosen.
    """

    weight: float
    budget: float
    chosen: Tensor
    losses: Tensor
    costs: Tensor

    @property
    def satisfied(self) -> float:
        """Share of tasks whose own cost is within the budget."""
        return satisfaction(self.costs, self.budget)


def satisfaction(costs: Tensor, budget: float) -> float:
    """Share of costs ``(n,)`` that are within a budget (to rounding)."""
    return float((in_float64(costs) <= budget * (1 + ROUNDING)).double().mean())


def penalised_choice(losses: Tensor, costs: Tensor, weight: float) -> Tensor:
    r""":math:`\arg\min_j \ell_j + \lambda c_j` of every task, ``(*b,)`` long; of equals the cheapest.

    Args:
        losses: ``(*b, J)``.
        costs: ``(J,)``, >= 0.
        weight: lambda >= 0.

    Raises:
        ValueError: for shapes that differ, values that are not finite, or a negative weight.
    """
    losses, costs = _checked(losses, costs)
    if not 0 <= weight < math.inf:
        raise ValueError(f"lambda is {weight}; expected a finite number >= 0")
    total = losses + weight * costs
    best = total.amin(-1, keepdim=True)
    equal = total <= best + TIE * (best.abs() + weight * costs.amax())
    return torch.where(equal, costs, torch.inf).argmin(-1)


def within_budget(losses: Tensor, costs: Tensor, budget: float) -> Tensor:
    """The routing of least loss among those that every task can pay for, ``(*b,)`` long; of equals the first.

    Args:
        losses: ``(*b, J)``.
        costs: ``(J,)``, >= 0.
        budget: of every task.

    Raises:
        ValueError: for a budget below the cheapest routing, or as in :func:`penalised_choice`.
    """
    losses, costs = _checked(losses, costs)
    _check_budget(costs, budget)
    return torch.where(costs <= budget * (1 + ROUNDING), losses, torch.inf).argmin(-1)


def solve_weight(losses: Tensor, costs: Tensor, budget: float) -> BudgetedChoice:
    r"""The smallest lambda at which the mean cost of :func:`penalised_choice` is within a budget.

    With growing lambda a task walks down the lower convex hull of its points (cost, loss), from the least loss to the
    least cost; it leaves a vertex when lambda is the slope of the edge behind it. The walks of all tasks are found at
    once, then their slopes are sorted. The choice has the least mean loss of all that have its mean cost or less
    (Everett 1963); the mean cost may stay below the budget, by at most one edge when no two slopes are equal. A single
    task's cost may exceed a budget of the mean: see ``satisfied``, or solve for one task at a time.

    Args:
        losses: ``(B, J)``.
        costs: ``(J,)``, >= 0.
        budget: of the mean over the B tasks.

    Raises:
        ValueError: for a budget below the cheapest routing, or as in :func:`penalised_choice`.
    """
    if losses.ndim != 2 or not len(losses):
        raise ValueError(f"losses have shape {tuple(losses.shape)}; expected (B, J), at least one task")
    losses, costs = _checked(losses, costs)
    _check_budget(costs, budget)
    slopes, path = _walks(losses, costs)  # (V, B), (V + 1, B)
    spent = costs[path]
    order = slopes.flatten().sort()
    saved = (spent[:-1] - spent[1:]).flatten()[order.indices] / len(losses)
    means = torch.cat([spent[:1].mean(1), -saved]).cumsum(0)
    enough = means <= budget + ROUNDING * float(costs.amax())  # the cumulated means round
    first = int(enough.int().argmax())
    weight = float(order.values[first - 1]) if first else 0.0
    taken = (slopes <= weight).sum(0) if first else torch.zeros_like(path[0])
    tasks = torch.arange(len(losses), device=losses.device)
    chosen = path[taken, tasks]
    return BudgetedChoice(weight, budget, chosen, losses[tasks, chosen], costs[chosen])


def _walks(losses: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes ``(V, B)`` (infinite at the end of a walk) and vertices ``(V + 1, B)`` of the lower hulls."""
    path: list[Tensor] = [penalised_choice(losses, costs, 0.0)]
    slopes: list[Tensor] = []
    while True:
        here = path[-1].unsqueeze(-1)
        saved = costs[here] - costs
        slope = torch.where(saved > 0, (losses - losses.gather(-1, here)) / saved, torch.inf)
        least = slope.amin(-1, keepdim=True)
        if torch.isinf(least).all():
            empty = losses.new_zeros(0, len(losses))
            return (torch.stack(slopes).cummax(0).values if slopes else empty), torch.stack(path)
        following = torch.where(slope <= least * (1 + TIE), costs, torch.inf).argmin(-1)
        path.append(torch.where(torch.isinf(least.squeeze(-1)), path[-1], following))
        slopes.append(least.squeeze(-1))


def _checked(losses: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    if losses.ndim < 1 or costs.ndim != 1 or losses.shape[-1:] != costs.shape or not len(costs):
        raise ValueError(
            f"losses have shape {tuple(losses.shape)} and costs {tuple(costs.shape)}; expected (*b, J) and (J,), one "
            "of each for every candidate, J > 0"
        )
    if not torch.isfinite(losses).all() or not (torch.isfinite(costs) & (costs >= 0)).all():
        raise ValueError("losses or costs hold NaN, infinite or negative costs; expected finite losses and costs >= 0")
    losses = in_float64(losses)
    return losses, in_float64(costs).to(losses.device)


def _check_budget(costs: Tensor, budget: float) -> None:
    if not costs.amin() <= budget * (1 + ROUNDING):
        raise ValueError(f"budget is {budget:g}; expected at least {float(costs.amin()):.6g}, the cheapest candidate")
