r"""Normalised iterative hard thresholding: the step is as long as the curvature of the present support allows.

.. math:: \mu = \frac{\|g_S\|^2}{g_S^\top H_{SS}\, g_S}, \qquad
          \Delta^+ = \mathcal{H}_k(\Delta - \mu\, g), \qquad g = \nabla_\Delta f(w, \Delta),

shortened when the support changes, until
:math:`\mu \le 0.99\, \|\Delta^+ - \Delta\|^2 / (\Delta^+ - \Delta)^\top H (\Delta^+ - \Delta)`
(Blumensath and Davies, IEEE JSTSP 4, 2010), with the weights at their optimum in between.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Point, Problem
from pyro_smat.solvers.refit import Fit, fit_weights
from pyro_smat.solvers.residual.iht import threshold, thresholded_point

_ITERATIONS = 500
_STILL = 1e-9  # relative change of the residual at which it has converged


def normalised_iht(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Gradient steps of adaptive length, k largest blocks, weights to their optimum.

    Args:
        problem: the task.
        start: where to begin.
        seed: not used; the method is deterministic.

    Yields:
        The iterates, which no refit has improved.
    """
    fit, residual = start, start.point.residual(problem.size)
    for _ in range(_ITERATIONS):
        gradient = problem.gradient(fit.point).residual + problem.ridge * residual
        support = fit.support if residual.any() else problem.blocks.largest(gradient, problem.budget)
        direction = np.zeros_like(gradient)
        direction[problem.blocks.entries(support)] = gradient[problem.blocks.entries(support)]
        if not direction.any():
            return
        step = 1 / _curvature(problem, fit.point.weights, residual, direction)
        while True:
            chosen, moved = threshold(problem, residual - step * gradient)
            change = moved - residual
            if np.array_equal(chosen, support) or not change.any():
                break
            if step * _curvature(problem, fit.point.weights, residual, change) <= 0.99:
                break
            step /= 2
        residual = moved
        fit = fit_weights(problem, thresholded_point(problem, fit.point.weights, chosen, residual), chosen)
        yield fit
        if np.linalg.norm(change) <= _STILL * np.linalg.norm(residual):
            return


def _curvature(problem: Problem, weights: FloatArray, residual: FloatArray, direction: FloatArray) -> float:
    """d'Hd / d'd of the objective, for a direction d ``(p,)`` that is mostly zero."""
    entries = ((residual != 0) | (direction != 0)).nonzero()[0]
    expansion = problem.expand(Point(weights, entries, residual[entries]))
    along = direction[entries]
    square = float(along @ along)
    return float(along @ expansion.hessian[problem.sources :, problem.sources :] @ along) / square + problem.ridge
