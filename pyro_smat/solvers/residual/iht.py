r"""Iterative hard thresholding as the paper has it: equation 7 with the step 1/L, alternating with the weights.

.. math:: \Delta \leftarrow \mathcal{H}_k\big(\Delta - \tfrac1L \nabla_\Delta f(w, \Delta)\big)

L is the largest eigenvalue over *all* coordinates. Where the features share a common factor it is about d times that of
a sparse direction, the step is as much too short, and the first support stays: the baseline of the other methods.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Indices, Point, Problem
from pyro_smat.solvers.refit import Fit, fit_weights

_ITERATIONS = 500
_STILL = 1e-9  # relative change of the residual at which it has converged


def iterative_hard_thresholding(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Gradient step, k largest blocks, weights to their optimum (the limit of equation 6's Frank-Wolfe steps).

    Args:
        problem: the task.
        start: where to begin.
        seed: not used; the method is deterministic.

    Yields:
        The iterates, which no refit has improved.
    """
    fit, residual = start, start.point.residual(problem.size)
    step = 1 / problem.smoothness()
    for _ in range(_ITERATIONS):
        gradient = problem.gradient(fit.point).residual + problem.ridge * residual
        support, moved = threshold(problem, residual - step * gradient)
        change = float(np.linalg.norm(moved - residual))
        residual = moved
        fit = fit_weights(problem, thresholded_point(problem, fit.point.weights, support, residual), support)
        yield fit
        if change <= _STILL * float(np.linalg.norm(residual)):
            return


def threshold(problem: Problem, residual: FloatArray) -> tuple[Indices, FloatArray]:
    """H_k: the k blocks of largest norm, and the residual ``(p,)`` with all others set to zero."""
    support = problem.blocks.largest(residual, problem.budget)
    entries = problem.blocks.entries(support)
    kept = np.zeros_like(residual)
    kept[entries] = residual[entries]
    return support, kept


def thresholded_point(problem: Problem, weights: FloatArray, support: Indices, residual: FloatArray) -> Point:
    """The point of these weights and of the residual's blocks in the support."""
    entries = problem.blocks.entries(support)
    return Point(weights, entries, residual[entries])
