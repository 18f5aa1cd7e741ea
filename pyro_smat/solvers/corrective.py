r"""Newton's method on the simplex: every step is an exact quadratic program over the sources that may have weight.

For a quadratic one step is the solution. For the logistic losses it is the proximal Newton method, quadratic near the
solution and a descent method before, by halving the step. With at most m active sources it is the fully corrective
Frank-Wolfe method, which is greedy: the best source enters, all weights are fitted anew, until m are active.
"""

from __future__ import annotations

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.active_set import solve_convex_qp
from pyro_smat.solvers.certified import Budget, Search, SimplexSolution, open_sources
from pyro_smat.solvers.objectives import CurvedObjective

_HALVINGS = 40
_PATIENCE = 2  # steps that may fail to lower the value before rounding is all that is left
_SUFFICIENT = 1e-4  # share of the promised descent that a step must keep
_ROUNDING = 4 * float(np.finfo(np.float64).eps)


def minimize_by_newton(objective: CurvedObjective, start: FloatArray, budget: Budget) -> SimplexSolution:
    """Newton steps from a feasible point until a budget ends them.

    Args:
        objective: convex, with a Hessian.
        start: ``(R,)`` or ``(L, R)`` in the simplex, with no more active sources than the budget has.
        budget: when to stop.
    """
    search = Search(objective, budget)
    weights, value, patience = start, objective.value(start), _PATIENCE
    while True:
        gradient = objective.gradient(weights)
        if status := search.visit(weights, value, gradient):
            return search.finish(status)
        if not patience:
            return search.finish("precision" if open_sources(weights, budget.active).all() else "active")
        # The first program looks for its own start: a given point, from a softmax say, may be on too large a face.
        near = weights if search.iterations > 1 else None
        if budget.active is None:
            target = _newton_target(objective, weights, gradient, near)
        else:
            target = _corrected(objective, weights, gradient, budget.active)
        moved, reached = _descend(objective, weights, value, target, float((gradient * (target - weights)).sum()))
        patience = _PATIENCE if reached < value else patience - 1
        weights, value = moved, reached


def _newton_target(
    objective: CurvedObjective, weights: FloatArray, gradient: FloatArray, near: FloatArray | None
) -> FloatArray:
    """The minimum of the second-order expansion over the whole domain."""
    hessian = objective.hessian(weights)
    linear = hessian @ weights.ravel() - gradient.ravel()
    blocks = weights.size // weights.shape[-1]
    target, _, _ = solve_convex_qp(hessian, linear, None if near is None else near.ravel(), blocks)
    return target.reshape(weights.shape)


def _corrected(objective: CurvedObjective, weights: FloatArray, gradient: FloatArray, most: int) -> FloatArray:
    """The minimum of the second-order expansion over the active sources and, below ``most`` of them, the best one."""
    sources = weights.shape[-1]
    best = gradient.reshape(-1, sources).argmin(1)
    chosen = []
    for row, entering in zip(weights.reshape(-1, sources), best, strict=True):
        active = row.nonzero()[0]
        chosen.append(np.union1d(active, entering) if len(active) < most else active)
    # Blocks of one size: what is missing in a block is its first source again, twice the same column.
    width = max(map(len, chosen))
    columns = np.stack([np.append(few, np.full(width - len(few), few[0])) for few in chosen])
    columns += np.arange(len(chosen))[:, None] * sources
    flat = columns.ravel()
    hessian = objective.hessian(weights)
    linear = hessian @ weights.ravel() - gradient.ravel()
    solved, _, _ = solve_convex_qp(hessian[np.ix_(flat, flat)], linear[flat], None, len(chosen))
    target = np.zeros(weights.size)
    np.add.at(target, flat, solved)
    return target.reshape(weights.shape)


def _descend(
    objective: CurvedObjective, weights: FloatArray, value: float, target: FloatArray, slope: float
) -> tuple[FloatArray, float]:
    """The first of the steps 1, 1/2, ... towards the target that descends enough, and the value there."""
    step = 1.0
    for _ in range(_HALVINGS):
        moved = target if step == 1 else weights + step * (target - weights)
        reached = objective.value(moved)
        if reached <= value + _SUFFICIENT * step * min(slope, 0.0) + _ROUNDING * abs(value):
            return moved, reached
        step /= 2
    return weights, value
