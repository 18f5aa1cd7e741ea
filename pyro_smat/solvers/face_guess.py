r"""Where the active-set method starts: a guess of the face that holds the solution.

Some pairwise Frank-Wolfe steps, at O(R) each, find most of the face. Block principal pivoting corrects it: with a
multiplier for every sum, the optimality conditions are a linear complementarity problem, in which the sources of the
face have equal gradients and the others larger ones. A pivot solves on the face, then lets *all* sources with a
negative weight leave and all with a smaller gradient enter (Portugal, Judice and Vicente, Mathematics of Computation
63, 1994). That is quick, but neither monotone nor finite where G is singular. So it works on G with a small ridge,
stops when pivots no longer help, and is trusted for a start only.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dposv

from pyro_smat.metrics.arrays import FloatArray

_STEPS = 8  # pairwise, for every block
_RIDGE = 1e-10  # relative to the largest diagonal entry
_PATIENCE = 3  # pivots that may fail to lower the number of misplaced sources


def guess_face(gram: FloatArray, linear: FloatArray, blocks: int) -> FloatArray:
    """A point on the guessed face, near the solution.

    Args:
        gram: ``(L * R, L * R)``.
        linear: ``(L * R,)``.
        blocks: L, the number of simplices.

    Returns:
        ``(L * R,)`` in the product of the simplices.
    """
    return _pivot(gram, linear, _pairwise(gram, linear, blocks), blocks)


def _pairwise(gram: FloatArray, linear: FloatArray, blocks: int) -> FloatArray:
    """Pairwise steps from the best vertices, each in the block where it promises most."""
    diagonal = gram.diagonal()
    offsets = np.arange(blocks) * (len(linear) // blocks)
    x = np.zeros(len(linear))
    x[(diagonal / 2 - linear).reshape(blocks, -1).argmin(1) + offsets] = 1.0
    gradient = gram @ x - linear
    for _ in range(_STEPS * blocks):
        towards = gradient.reshape(blocks, -1).argmin(1) + offsets
        away = np.where(x > 0, gradient, -np.inf).reshape(blocks, -1).argmax(1) + offsets
        slopes = gradient[away] - gradient[towards]
        block = int(slopes.argmax())
        s, a, slope = towards[block], away[block], slopes[block]
        if slope <= 0:
            break
        curvature = diagonal[s] + diagonal[a] - 2 * gram[s, a]
        step = x[a] if curvature * x[a] <= slope else slope / curvature
        x[s] += step
        x[a] -= step
        gradient += step * (gram[s] - gram[a])
    return x


def _pivot(gram: FloatArray, linear: FloatArray, start: FloatArray, blocks: int) -> FloatArray:
    """The point of lowest value among ``start`` and what pivoting from its face comes across, made feasible."""
    unit = float(gram.diagonal().max()) or 1.0
    sums = np.repeat(np.eye(blocks), len(linear) // blocks, axis=0)
    lifted = gram + unit * (sums @ sums.T)  # the same function, but for a constant, where the weights sum to 1
    lifted.flat[:: len(linear) + 1] += _RIDGE * unit
    sides = np.column_stack([linear, sums])

    best, lowest = start, float(start @ (gram @ start / 2 - linear))
    inside = start > 0
    fewest, patience = len(linear) + 1, _PATIENCE
    while patience and inside.reshape(blocks, -1).any(1).all():
        index = inside.nonzero()[0]
        _, solved, failed = dposv(lifted[index[:, None], index], sides[index], lower=1)
        if failed:
            break
        totals = sums[index].T @ solved
        levels = dposv(totals[:, 1:], 1 - totals[:, 0])[1]  # of the gradient in each block
        x = np.zeros(len(linear))
        x[index] = solved[:, 0] + solved[:, 1:] @ levels

        misplaced = np.where(inside, x < 0, lifted @ x - linear < sums @ levels - _RIDGE * unit)
        count = int(misplaced.sum())
        if count == 0:
            return x
        positive = np.maximum(x, 0.0).reshape(blocks, -1)
        sums_of_positive = positive.sum(1, keepdims=True)
        if not (sums_of_positive > 0).all() or not np.isfinite(sums_of_positive).all():
            break  # a matrix too small beside the linear part to solve with
        feasible = (positive / sums_of_positive).ravel()
        value = float(feasible @ (gram @ feasible / 2 - linear))
        if value < lowest:
            best, lowest = feasible, value
        patience = _PATIENCE if count < fewest else patience - 1
        fewest = min(fewest, count)
        inside ^= misplaced
    return best
