r"""Frank-Wolfe on a simplex or a product of simplices: one loop, five rules for the next direction.

A rule looks at the weights and the gradient g. With s the source of smallest gradient and a the active one of largest,

====================  ===========================================================  =====================================
rule                  direction                                                    source
====================  ===========================================================  =====================================
vanilla, open loop    :math:`e_s - w` in every block                               multi-source paper, equation 6
away                  that, or :math:`w - e_a` where it descends more              Lacoste-Julien and Jaggi 2015
pairwise              :math:`e_s - e_a`                                            Lacoste-Julien and Jaggi 2015
blended               pairwise within the active sources, else :math:`e_s - w`     Tsuji, Tanaka and Pokutta 2022
====================  ===========================================================  =====================================

The last three are linear on polytopes. They change the one block that promises most, because a common step would be as
short as the smallest weight that leaves any block. Steps are exact for quadratics, else found by backtracking on a
running estimate of the smoothness (Pedregosa, Negiar, Askari and Jaggi 2020); "open loop" takes 2 / (t + 2) unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.certified import BoolArray, Budget, Search, SimplexSolution, open_sources
from pyro_smat.solvers.objectives import SimplexObjective

_RESTART = 64  # iterations until weights and value are computed anew from scratch, against drift
_HALVINGS = 60
_ROUNDING = 4 * float(np.finfo(np.float64).eps)


class Direction(NamedTuple):
    """A feasible direction ``(L, R)`` of the weights and its longest feasible step."""

    change: FloatArray
    longest: float


Rule = Callable[[FloatArray, FloatArray, BoolArray], Direction]
"""From weights, gradient and the sources that may have weight, ``(L, R)`` each, to the next direction."""


def vanilla(weights: FloatArray, gradient: FloatArray, allowed: BoolArray) -> Direction:
    """Every block towards its best vertex."""
    change = -weights
    change[np.arange(len(weights)), _best(gradient, allowed)] += 1.0
    return Direction(change, 1.0)


def away(weights: FloatArray, gradient: FloatArray, allowed: BoolArray) -> Direction:
    """One block towards its best vertex or away from its worst, whichever descends more."""
    rows, best, worst = np.arange(len(weights)), _best(gradient, allowed), _worst(gradient, weights)
    mean = (weights * gradient).sum(1)
    ahead, behind = mean - gradient[rows, best], gradient[rows, worst] - mean
    if ahead.max() >= behind.max():
        block = int(ahead.argmax())
        return Direction(_to_vertex(weights, block, best[block]), 1.0)
    block = int(behind.argmax())
    share = float(weights[block, worst[block]])
    return Direction(-_to_vertex(weights, block, worst[block]), share / (1 - share) if share < 1 else 0.0)


def pairwise(weights: FloatArray, gradient: FloatArray, allowed: BoolArray) -> Direction:
    """One block from its worst active vertex to its best."""
    return _swap(weights, gradient, _worst(gradient, weights), _best(gradient, allowed))


def blended(weights: FloatArray, gradient: FloatArray, allowed: BoolArray) -> Direction:
    """One block pairwise among its active vertices, unless going towards its best vertex descends more."""
    rows, best, worst = np.arange(len(weights)), _best(gradient, allowed), _worst(gradient, weights)
    nearest = _best(gradient, weights > 0)
    ahead = (weights * gradient).sum(1) - gradient[rows, best]
    if ahead.max() > (gradient[rows, worst] - gradient[rows, nearest]).max():
        block = int(ahead.argmax())
        return Direction(_to_vertex(weights, block, best[block]), 1.0)
    return _swap(weights, gradient, worst, nearest)


class Step(Protocol):
    """How far to go: from the point, its value and the direction, to a step and the value there."""

    def __call__(
        self, objective: SimplexObjective, weights: FloatArray, value: float, direction: Direction, slope: float
    ) -> tuple[float, float]: ...


class OpenLoop:
    """2 / (t + 2) in iteration t = 0, 1, ..., of the way to a vertex."""

    def __init__(self) -> None:
        self._iteration = 0

    def __call__(
        self, objective: SimplexObjective, weights: FloatArray, value: float, direction: Direction, slope: float
    ) -> tuple[float, float]:
        step = 2 / (self._iteration + 2)
        self._iteration += 1
        return step, objective.value(weights + step * direction.change.reshape(weights.shape))


class Exact:
    """The minimum of a quadratic along the direction."""

    def __init__(self, gram: FloatArray) -> None:
        self._gram = gram

    def __call__(
        self, objective: SimplexObjective, weights: FloatArray, value: float, direction: Direction, slope: float
    ) -> tuple[float, float]:
        change = direction.change.ravel()
        curvature = float(change @ self._gram @ change)
        step = direction.longest if curvature * direction.longest <= -slope else -slope / curvature
        return step, value + step * (slope + step / 2 * curvature)


class Backtracking:
    """The minimum of a quadratic bound, whose curvature doubles until it is one and shrinks a little every time."""

    def __init__(self) -> None:
        self._smoothness = 0.0

    def __call__(
        self, objective: SimplexObjective, weights: FloatArray, value: float, direction: Direction, slope: float
    ) -> tuple[float, float]:
        square = float((direction.change**2).sum())
        shortest = -slope / (direction.longest * square)  # the smoothness from which on the step is not the longest
        self._smoothness *= 0.9
        for _ in range(_HALVINGS):
            step = direction.longest if self._smoothness <= shortest else -slope / (self._smoothness * square)
            reached = objective.value(weights + step * direction.change.reshape(weights.shape))
            if reached <= value + step * (slope + step / 2 * self._smoothness * square) + _ROUNDING * abs(value):
                return step, reached
            self._smoothness = 2 * max(self._smoothness, shortest / 2)
        return 0.0, value


def frank_wolfe(
    objective: SimplexObjective, start: FloatArray, budget: Budget, rule: Rule, step: Step
) -> SimplexSolution:
    """Run a rule from a feasible point until a budget ends it.

    Args:
        objective: what to minimise.
        start: ``(R,)`` or ``(L, R)`` in the simplex, with no more active sources than the budget has.
        budget: when to stop.
        rule: what gives the direction.
        step: what gives the length, fresh for this run.
    """
    search = Search(objective, budget)
    blocks = start.reshape(-1, start.shape[-1])
    value = objective.value(start)
    while True:
        gradient = objective.gradient(blocks.reshape(start.shape)).reshape(blocks.shape)
        if status := search.visit(blocks.reshape(start.shape), value, gradient.reshape(start.shape)):
            return search.finish(status)
        allowed = open_sources(blocks, budget.active)
        direction = rule(blocks, gradient, allowed)
        slope = float((gradient * direction.change).sum())
        length, reached = (
            step(objective, blocks.reshape(start.shape), value, direction, slope) if slope < 0 else (0.0, value)
        )
        if length == 0:
            return search.finish("precision" if allowed.all() else "active")
        blocks = blocks + length * direction.change
        if length == direction.longest:
            blocks[(direction.change < 0) & (blocks < _ROUNDING)] = 0.0  # what has left, has left
        np.maximum(blocks, 0.0, out=blocks)
        value = reached
        if search.iterations % _RESTART == 0:
            blocks /= blocks.sum(1, keepdims=True)
            value = objective.value(blocks.reshape(start.shape))


def _best(gradient: FloatArray, allowed: BoolArray) -> npt.NDArray[np.intp]:
    return np.where(allowed, gradient, np.inf).argmin(1)


def _worst(gradient: FloatArray, weights: FloatArray) -> npt.NDArray[np.intp]:
    return np.where(weights > 0, gradient, -np.inf).argmax(1)


def _to_vertex(weights: FloatArray, block: int, vertex: int) -> FloatArray:
    change = np.zeros_like(weights)
    change[block] = -weights[block]
    change[block, vertex] += 1.0
    return change


def _swap(
    weights: FloatArray, gradient: FloatArray, worst: npt.NDArray[np.intp], best: npt.NDArray[np.intp]
) -> Direction:
    rows = np.arange(len(weights))
    block = int((gradient[rows, worst] - gradient[rows, best]).argmax())
    change = np.zeros_like(weights)
    change[block, best[block]] += 1.0
    change[block, worst[block]] -= 1.0
    return Direction(change, float(weights[block, worst[block]]))
