r"""What stops a simplex solver and what it returns: budgets, the certificate, the solution.

The certificate is the Frank-Wolfe gap, :math:`g(w) = \sum_l \max_r \langle \nabla_l f(w), w_l - e_r \rangle`, free with
every gradient. For convex f the optimum is at least f(w) - g(w); the gap is not monotone, so the best of these bounds
over all iterates counts. For other f the gap says how far w is from stationary, and nothing about the optimum.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.solvers.objectives import SimplexObjective

BoolArray = npt.NDArray[np.bool_]
Status = Literal["converged", "iterations", "active", "seconds", "precision"]


@dataclass(frozen=True)
class SimplexSolution:
    """Weights with what is known of them, whatever ended the search.

    Attributes:
        weights: ``(R,)`` or ``(L, R)``, in the simplex.
        value: the objective there.
        gap: for a convex objective at least value minus minimum over the *whole* simplex, also when the number of
            active sources was limited; else the Frank-Wolfe gap, zero where the weights are stationary.
        lower_bound: value - gap, a bound on the minimum; None when the objective is not convex.
        iterations: gradients that were taken.
        status: "converged" to the tolerance, or what ended the search: the budget of "iterations", "active" sources or
            "seconds", or floating point "precision".
    """

    weights: FloatArray
    value: float
    gap: float
    lower_bound: float | None
    iterations: int
    status: Status

    @property
    def active(self) -> IntArray:
        """``(A,)`` indices of the sources with a positive weight, in any block."""
        return (self.weights.reshape(-1, self.weights.shape[-1]) > 0).any(0).nonzero()[0]

    @property
    def certificate(self) -> Literal["optimality", "stationarity"]:
        """What the gap is a certificate of."""
        return "stationarity" if self.lower_bound is None else "optimality"


@dataclass(frozen=True)
class Budget:
    """When to stop: at a gap, after some gradients, at a time of time.perf_counter; most active sources of a block."""

    tolerance: float
    iterations: int
    active: int | None
    deadline: float | None


class Search:
    """The run of a solver: the best point so far, the best bound, and whether to go on."""

    def __init__(self, objective: SimplexObjective, budget: Budget) -> None:
        self._objective, self._budget = objective, budget
        self._bound, self._value, self._gap = -np.inf, np.inf, np.inf
        self._weights = np.empty(0)
        self.iterations = 0

    def visit(self, weights: FloatArray, value: float, gradient: FloatArray) -> Status | None:
        """Take note of an iterate; the answer is why to stop, or None.

        Raises:
            ValueError: when the objective or its gradient is NaN or infinite: no bound would mean anything.
        """
        self.iterations += 1
        gap = float((weights * gradient).sum() - gradient.min(-1).sum())
        if not (np.isfinite(value) and np.isfinite(gap)):
            raise ValueError(
                f"the objective is {value} at iterate {self.iterations} and its gradient has "
                f"{int((~np.isfinite(gradient)).sum())} NaN or infinite entries; expected finite numbers on the simplex"
            )
        gap = max(0.0, gap)
        self._bound = max(self._bound, value - gap)
        if value <= self._value:
            self._weights, self._value, self._gap = weights, value, gap
        if self._certified() <= self._budget.tolerance:
            return "converged"
        if self._budget.active is not None:
            allowed = open_sources(weights, self._budget.active)
            left = (weights * gradient).sum() - np.where(allowed, gradient, np.inf).min(-1).sum()
            if left <= self._budget.tolerance and not allowed.all():
                return "active"
        if self.iterations >= self._budget.iterations:
            return "iterations"
        if self._budget.deadline is not None and time.perf_counter() >= self._budget.deadline:
            return "seconds"
        return None

    def finish(self, status: Status) -> SimplexSolution:
        """The best iterate."""
        gap = self._certified()
        bound = self._value - gap if self._objective.convex else None
        return SimplexSolution(self._weights, self._value, gap, bound, self.iterations, status)

    def _certified(self) -> float:
        """The gap of the best iterate, or what the bound of another one makes of it."""
        return min(self._gap, max(0.0, self._value - self._bound)) if self._objective.convex else self._gap


def open_sources(weights: FloatArray, most: int | None) -> BoolArray:
    """Sources that may have weight: all, but only the active ones where a block has ``most`` of them; like weights."""
    active = weights > 0
    return active | (most is None or active.sum(-1, keepdims=True) < most)
