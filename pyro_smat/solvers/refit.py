r"""The joint refit: weights and residual on a fixed support, minimised together and exactly.

On a support S the problem is convex in (w, Delta_S). A proximal Newton step minimises its second-order expansion over
simplex x R^s: Delta_S is eliminated by a Cholesky factor of its block,

.. math:: \Delta_S(w) = M^{-1}(t - C w), \qquad M = H_{SS} + \mathrm{diag}(\mathrm{penalties}),

and the Schur complement :math:`H_{ww} - C^\top M^{-1} C` is a quadratic program of R weights, solved exactly by the
active-set method. For the squared loss one step is the answer; for the logistic loss a line search makes it a descent
method that ends quadratically. The residual of the optimality conditions is the certificate of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.active_set import solve_convex_qp
from pyro_smat.solvers.problem import Expansion, Indices, Point, Problem

_STEPS = 60
_SINGULAR = 1e-13  # smallest square of a pivot, relative to the largest diagonal entry, at ridge 0
_TOLERANCE = 1e-12  # of the optimality conditions, relative to the problem's scale


@dataclass(frozen=True)
class Fit:
    """A feasible point and how good it is.

    Attributes:
        point: weights and residual.
        support: the blocks that may be on, ``(m,)`` block numbers; ``point.entries`` are theirs.
        value: the objective, ridge included.
        kkt_residual: larger one of the Frank-Wolfe gap of the weights and the largest absolute derivative in an entry
            of the support.
    """

    point: Point
    support: Indices
    value: float
    kkt_residual: float


def objective(problem: Problem, point: Point) -> float:
    """Loss plus half the ridge times the squared norm of the residual."""
    return problem.loss(point) + problem.ridge / 2 * float(point.values @ point.values)


def refit(problem: Problem, support: Indices, start: Fit | None = None, penalties: FloatArray | None = None) -> Fit:
    """Minimise jointly over the weights and the blocks of a support.

    Args:
        problem: the task.
        support: ``(m,)`` block numbers, each once.
        start: where to begin: its weights, and its values where the supports meet.
        penalties: ``(s,)`` weights of half the squares of the support's entries in place of the ridge (the relaxation
            of lower_bound.py); the fit's value is the objective with them.

    Raises:
        ValueError: when the ridge is 0 and the Hessian on the support is singular.
    """
    entries = problem.blocks.entries(support)
    if penalties is None:
        penalties = np.full(len(entries), problem.ridge)
    if start is None:
        weights, values = np.full(problem.sources, 1 / problem.sources), np.zeros(len(entries))
    else:
        weights, values = start.point.weights, start.point.residual(problem.size)[entries]
    return _minimize(problem, Point(weights, entries, values), support, penalties, _newton_target)


def fit_weights(problem: Problem, point: Point, support: Indices) -> Fit:
    """Minimise over the weights with the residual of a point held; arguments and result as in :func:`refit`."""
    penalties = np.full(len(point.values), problem.ridge)
    return _minimize(problem, point, support, penalties, _weight_target)


_Target = Callable[[Expansion, Point, FloatArray], Point]


def _minimize(problem: Problem, point: Point, support: Indices, penalties: FloatArray, target_of: _Target) -> Fit:
    """Newton steps to the target of each expansion until the conditions hold as well as rounding lets them."""
    expansion = problem.expand(point)
    residual = _kkt_residual(expansion, point, penalties)
    for _ in range(_STEPS):
        if residual <= _TOLERANCE * problem.scale:
            break
        target = target_of(expansion, point, penalties)
        descent = _descend(problem, expansion, point, target, penalties)
        moved = target if descent is None else descent  # where values are equal to rounding, gradients still tell
        moved_expansion = problem.expand(moved)
        moved_residual = _kkt_residual(moved_expansion, moved, penalties)
        if descent is None and not moved_residual < residual / 2:
            break
        point, expansion, residual = moved, moved_expansion, moved_residual
    return Fit(point, support, expansion.loss + float(penalties @ point.values**2) / 2, residual)


def _kkt_residual(expansion: Expansion, point: Point, penalties: FloatArray) -> float:
    gap = float(point.weights @ expansion.weights - expansion.weights.min())
    return max(0.0, gap, float(np.abs(expansion.entries + penalties * point.values).max(initial=0.0)))


def _newton_target(expansion: Expansion, point: Point, penalties: FloatArray) -> Point:
    """The minimiser of the expansion plus penalties over the simplex and the entries."""
    count, hessian = len(point.weights), expansion.hessian
    linear = hessian @ np.concatenate([point.weights, point.values])
    linear -= np.concatenate([expansion.weights, expansion.entries])
    factor = _factor(hessian[count:, count:] + np.diag(penalties), penalties)
    cross = hessian[count:, :count]
    solved = cho_solve((factor, True), np.column_stack([cross, linear[count:]]), check_finite=False)
    gram = hessian[:count, :count] - cross.T @ solved[:, :-1]
    weights, _, _ = solve_convex_qp((gram + gram.T) / 2, linear[:count] - cross.T @ solved[:, -1], point.weights)
    return Point(weights, point.entries, solved[:, -1] - solved[:, :-1] @ weights)


def _weight_target(expansion: Expansion, point: Point, penalties: FloatArray) -> Point:
    """The minimiser of the expansion over the simplex alone."""
    count = len(point.weights)
    gram = expansion.hessian[:count, :count]
    weights, _, _ = solve_convex_qp(gram, gram @ point.weights - expansion.weights, point.weights)
    return Point(weights, point.entries, point.values)


def _factor(block: FloatArray, penalties: FloatArray) -> FloatArray:
    """Lower Cholesky factor of the Hessian on the support."""
    try:
        factor = np.linalg.cholesky(block)
        if penalties.all() or factor.diagonal().min(initial=np.inf) ** 2 > _SINGULAR * block.diagonal().max(initial=0):
            return factor
    except np.linalg.LinAlgError:
        pass
    raise ValueError(
        f"ridge is {penalties.min():g} and the features of the {len(block)} entries of the support are linearly "
        "dependent on these examples, so the refit has no single answer; expected a ridge > 0 or a smaller budget"
    )


def _descend(
    problem: Problem, expansion: Expansion, point: Point, target: Point, penalties: FloatArray
) -> Point | None:
    """The first of the steps 1, 1/2, ... towards the target that descends enough; None when there is none."""
    weights, values = target.weights - point.weights, target.values - point.values
    slope = float(expansion.weights @ weights + (expansion.entries + penalties * point.values) @ values)
    value = expansion.loss + float(penalties @ point.values**2) / 2
    rounding = 1e-15 * problem.scale
    if slope >= -1e-3 * rounding:
        return None
    step, moved = 1.0, target
    while problem.loss(moved) + float(penalties @ moved.values**2) / 2 > value + 1e-4 * step * slope + rounding:
        step /= 2
        if step < 1e-10:
            return None
        moved = Point(point.weights + step * weights, point.entries, point.values + step * values)
    return moved
