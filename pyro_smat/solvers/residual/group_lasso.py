r"""The group lasso (equation 8 of the paper) along a path of penalties, its largest blocks refitted.

.. math:: \min_{w, \Delta}\; f(w, \Delta) + \lambda \sum_b \|\Delta_b\|_2, \qquad
          \mathrm{prox}_{t \lambda}(v)_b = \max\big(0, 1 - t \lambda / \|v_b\|\big)\, v_b

The weights are minimised out, :math:`F(\Delta) = \min_w f(w, \Delta)`: F is convex, its gradient is that of f at the
best weights, and as smooth. What remains is accelerated proximal gradient with restarts (O'Donoghue and Candes, 2015).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Blocks, Indices, Point, Problem
from pyro_smat.solvers.refit import Fit, fit_weights, refit

_ITERATIONS = 3000
_PENALTIES = 40
_JOINING = 10  # blocks at a time
_RATIO = 0.85  # of a penalty to the one before


def group_lasso(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Lower the penalty from where no block is on until twice the budget is; refit the k largest blocks of each.

    Args:
        problem: the task.
        start: a refit, usually of the empty support.
        seed: not used; the method is deterministic.

    Yields:
        The refit at every penalty at which a block is on.
    """
    fit = replace(start, point=replace(start.point, values=np.zeros_like(start.point.values)))
    fit = fit_weights(problem, fit.point, fit.support)
    penalty = float(np.sqrt(problem.blocks.squared_norms(problem.gradient(fit.point).residual).max()))
    for _ in range(_PENALTIES):
        penalty *= _RATIO
        fit = penalised_fit(problem, penalty, fit, tolerance=1e-4)
        if len(fit.support):
            yield refit(problem, problem.blocks.largest(fit.point.residual(problem.size), problem.budget), fit)
        if len(fit.support) >= 2 * problem.budget:
            return


def block_soft_threshold(blocks: Blocks, values: FloatArray, penalty: float) -> FloatArray:
    """The proximal map of penalty times the sum of the blocks' norms, at ``(p,)`` values."""
    norms = np.sqrt(blocks.squared_norms(values))
    shrunk = np.maximum(0.0, norms - penalty) / np.maximum(norms, np.finfo(np.float64).tiny)
    return values * shrunk[blocks.of_entry]


def penalised_fit(problem: Problem, penalty: float, start: Fit, tolerance: float = 1e-9) -> Fit:
    r"""Minimise f plus the penalty times the sum of the blocks' norms.

    Only a working set of blocks is iterated on; those that violate the optimality condition
    :math:`\|\nabla_b f\| \le \lambda` join it. Fewer coordinates share less of a common factor, so steps are longer.

    Args:
        problem: the task; its budget plays no part.
        penalty: lambda > 0.
        start: where to begin.
        tolerance: of the optimality conditions, relative to the penalty.

    Returns:
        The minimiser, its support the blocks that are on; value and kkt_residual are those of f.
    """
    fit = start
    for _ in range(len(problem.blocks)):
        norms = np.sqrt(problem.blocks.squared_norms(problem.gradient(fit.point).residual))
        norms[fit.support] = 0.0
        violating = (norms > (1 + tolerance) * penalty).nonzero()[0]
        if not len(violating) and (fit is not start or not len(fit.support)):
            break
        joining = violating[np.argsort(-norms[violating])][:_JOINING]
        fit = _on_working_set(problem, penalty, fit, np.concatenate([fit.support, joining]), tolerance)
    return fit


def _on_working_set(problem: Problem, penalty: float, start: Fit, support: Indices, tolerance: float) -> Fit:
    entries = problem.blocks.entries(support)
    part = Blocks(
        tuple(np.split(np.arange(len(entries)), np.cumsum([len(problem.blocks.members[b]) for b in support])[:-1]))
    )
    smoothness = problem.smoothness(entries)
    values = ahead = start.point.residual(problem.size)[entries]
    fit, momentum = start, 1.0
    for _ in range(_ITERATIONS):
        fit = fit_weights(problem, Point(fit.point.weights, entries, ahead), support)
        gradient = problem.expand(fit.point).entries + problem.ridge * ahead
        moved = block_soft_threshold(part, ahead - gradient / smoothness, penalty / smoothness)
        change = moved - values
        if np.linalg.norm(moved - ahead) * smoothness <= tolerance * penalty:
            values = moved
            break
        if (ahead - moved) @ change > 0:
            momentum = 1.0
        grown = (1 + float(np.sqrt(1 + 4 * momentum**2))) / 2
        ahead = moved + (momentum - 1) / grown * change
        values, momentum = moved, grown
    on = support[part.squared_norms(values).nonzero()[0]]
    residual = Point(fit.point.weights, entries, values).residual(problem.size)
    kept = problem.blocks.entries(on)
    return fit_weights(problem, Point(fit.point.weights, kept, residual[kept]), on)
