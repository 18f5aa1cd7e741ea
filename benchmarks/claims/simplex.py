"""The simplex by brute force: projection of many points at once, and least squares by walking through all faces.

Slow and simple on purpose: what the simulations call exact does not rest on the solvers of the package.
"""

from __future__ import annotations

import itertools

import numpy as np

from pyro_smat.metrics.arrays import FloatArray


def project_onto_simplex(points: FloatArray) -> FloatArray:
    """Nearest point of the simplex to each of ``(..., R)`` points (Held, Wolfe, Crowder 1974)."""
    falling = -np.sort(-points, axis=-1)
    shift = (np.cumsum(falling, axis=-1) - 1) / np.arange(1, points.shape[-1] + 1)
    last = np.count_nonzero(falling > shift, axis=-1)[..., None] - 1
    return np.maximum(points - np.take_along_axis(shift, last, axis=-1), 0)


def least_squares_by_faces(
    gram: FloatArray, linear: FloatArray, largest: int | None = None
) -> tuple[FloatArray, FloatArray]:
    r"""Minimise :math:`\tfrac12 w^\top G w - b^\top w` over w in the simplex with at most ``largest`` nonzeros.

    The optimum is in the interior of some face, where it solves the equality-constrained problem of that face; so the
    best feasible one of those 2^R - 1 solutions is the global optimum, also for the NP-hard problem with a cap.

    Args:
        gram: G ``(..., R, R)``, positive definite on the tangent space of every face.
        linear: b ``(..., R, B)``, B right-hand sides for each G.
        largest: the cap on nonzeros; None means R.

    Returns:
        Weights ``(..., R, B)`` and values ``(..., B)``.
    """
    sources = gram.shape[-1]
    weights, values = np.zeros(linear.shape), np.full(linear.shape[:-2] + linear.shape[-1:], np.inf)
    for size in range(1, (largest or sources) + 1):
        for face in itertools.combinations(range(sources), size):
            kept = list(face)
            bordered = np.zeros((*gram.shape[:-2], size + 1, size + 1))
            bordered[..., :size, :size] = gram[..., np.ix_(kept, kept)[0], np.ix_(kept, kept)[1]]
            bordered[..., size, :size] = bordered[..., :size, size] = 1
            right = np.concatenate([linear[..., kept, :], np.ones((*linear.shape[:-2], 1, linear.shape[-1]))], axis=-2)
            found = np.zeros(linear.shape)
            found[..., kept, :] = np.linalg.solve(bordered, right)[..., :size, :]
            value = np.sum(found * (gram @ found / 2 - linear), axis=-2)
            better = (found.min(axis=-2) >= 0) & (value < values)
            values = np.where(better, value, values)
            weights = np.where(better[..., None, :], found, weights)
    return weights, values
