r"""The exact quadratic program over a simplex: a primal active-set method in float64 for one small problem.

Everything quadratic ends here: composition weights for the squared loss, every proximal Newton step of a logistic loss,
and the joint refit of weights and residual on a fixed support.

The method walks over faces of the simplex. It keeps the matrix :math:`M = N (N^\top G N)^{-1} N^\top`, N spanning the
tangent space of the face, and changes it by a rank-one sweep when a source enters or leaves. A source enters along the
direction that is G-conjugate to the face. Where G has no curvature in it (duplicated sources, fewer examples than
sources) the step goes on to the next boundary and a source leaves instead: M never inverts anything singular, and no
ridge is needed. What counts as flat is relative to the larger of curvature and slope, as a saturated logistic loss has
a Hessian of 1e-9 beside slopes of 1e2; the problem is scaled by a power of two, which rounds nothing. Every move lowers
the value and faces are finitely many, as in Wolfe's method for the nearest point of a polytope (Mathematical
Programming 11, 1976); "fully corrective" in the words of Frank-Wolfe.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpotri, dpstrf

from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.solvers.face_guess import guess_face
from pyro_smat.solvers.validation import check_convex, feasible_weights, finite_array, is_single

_EPSILON = float(np.finfo(np.float64).eps)
_FLAT = 1e-12  # a face with less curvature than this, relative to the problem's unit, is walked off, not factorised
_PATIENCE = 3  # entries that may fail to lower the value, which they do by rounding only
_ROUNDS = 4  # of recomputing what rank-one updates have worn; two suffice but for the worst conditioned problems


def solve_simplex_qp(
    gram: Numbers, linear: Numbers, start: Numbers | None = None, *, blocks: int = 1
) -> tuple[FloatArray, float, int]:
    r"""Minimise a convex quadratic over the simplex, or over a product of simplices, to machine precision.

    .. math:: \min_w\; \tfrac12 w^\top G w - b^\top w
              \quad\text{with } w_{lr} \ge 0,\; \textstyle\sum_r w_{lr} = 1 \text{ for every block } l.

    Args:
        gram: G ``(R, R)``, or ``(L * R, L * R)`` for L blocks one after the other; symmetric positive semidefinite, it
            may be singular.
        linear: b ``(R,)`` or ``(L * R,)``.
        start: like ``linear``, a feasible point near the solution. None finds one itself.
        blocks: L, the number of simplices.

    Returns:
        w like ``linear``; its Frank-Wolfe gap, summed over blocks, which bounds value minus optimum; and the number of
        iterations.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinity, no source, a gram that is not symmetric or has a
            negative eigenvalue (beyond the rounding of its dtype), or a start that is not feasible.

    Example:
        >>> solve_simplex_qp([[2.0, 0.0], [0.0, 1.0]], [0.0, 0.0])[0]
        array([0.33333333, 0.66666667])
    """
    return solve_convex_qp(*_checked(gram, linear, start, blocks), blocks)


def solve_convex_qp(
    gram: FloatArray, linear: FloatArray, start: FloatArray | None, blocks: int = 1
) -> tuple[FloatArray, float, int]:
    """:func:`solve_simplex_qp` of a float64 problem that is known to be convex: what other solvers call at every step.

    Args:
        gram: ``(L * R, L * R)``.
        linear: ``(L * R,)``.
        start: ``(L * R,)`` in the product of the simplices; None finds one.
        blocks: L.

    Raises:
        ValueError: for NaN or infinity, in the problem or in what is found.
    """
    largest = float(np.abs(gram).max()), float(np.abs(linear).max())
    if not np.isfinite(largest).all():
        raise ValueError(f"gram reaches {largest[0]} and linear {largest[1]}; expected finite numbers")
    scale = _power_of_two(max(largest))
    gram, linear = gram / scale, linear / scale
    if float(gram.diagonal().max()) < _EPSILON * _slope(linear, blocks):
        gram = np.zeros_like(gram)  # it moves the value by less than the tolerance: not to divide by
    walk = _Walk(gram, linear, guess_face(gram, linear, blocks) if start is None else start.copy(), blocks)
    gap = np.inf
    for _ in range(_ROUNDS):
        walk.factorise()
        walk.descend()
        walk.settle()
        if not walk.gap() < gap / 2:
            break
        gap = walk.gap()
        if gap <= walk.tolerance:
            break
    if not (np.isfinite(walk.weights).all() and np.isfinite(walk.gap())):
        raise ValueError(
            f"no weights were found: gram reaches {largest[0]:.3g} and linear {largest[1]:.3g}; expected a convex "
            "problem, whose numbers are not further apart than float64 resolves"
        )
    return walk.weights, walk.gap() * scale, walk.iterations


def _power_of_two(size: float) -> float:
    """The scale of a problem: dividing by it rounds nothing."""
    return float(np.ldexp(1.0, int(np.clip(np.frexp(size)[1], -1000, 1000)))) if size > 0 else 1.0


def _slope(linear: FloatArray, blocks: int) -> float:
    """The largest difference of two entries of a block: what is common to all moves nothing."""
    return float(np.ptp(linear.reshape(blocks, -1), 1).max())


class _Walk:
    """Point, gradient and face of the walk; ``inside`` marks the sources of the face."""

    def __init__(self, gram: FloatArray, linear: FloatArray, start: FloatArray, blocks: int) -> None:
        self.gram, self.linear, self.weights = gram, linear, start
        self.shape = (blocks, len(linear) // blocks)
        self.unit = max(float(gram.diagonal().max()), _slope(linear, blocks)) or 1.0
        self.iterations, self.limit = 0, 100 + 20 * len(linear)
        self.settle()

    def settle(self) -> None:
        """Take out what rounding has done to the sums and to the gradient."""
        weights = self.weights.reshape(self.shape)
        weights /= weights.sum(1, keepdims=True)
        product = self.gram @ self.weights
        self.gradient = product - self.linear
        self.tolerance = 32 * _EPSILON * float(np.abs(product).max() + np.abs(self.linear).max())

    def slopes(self) -> FloatArray:
        """Descent on the way to each vertex, ``(L, R)``: how far its gradient is below the block's mean gradient."""
        gradient = self.gradient.reshape(self.shape)
        return (self.weights.reshape(self.shape) * gradient).sum(1, keepdims=True) - gradient

    def gap(self) -> float:
        return max(0.0, float(self.slopes().max(1).sum()))

    def factorise(self) -> None:
        """Start on the face of the present point, after walking off vertices that are redundant there."""
        while True:
            self.inverse = np.zeros_like(self.gram)
            self.inside = self.weights > 0
            # The tangent space is spanned by the ways from each block's heaviest source to its others: vectors that sum
            # to zero however badly conditioned the face is.
            heaviest = self.weights.reshape(self.shape).argmax(1) + np.arange(self.shape[0]) * self.shape[1]
            others = self.inside.copy()
            others[heaviest] = False
            index = others.nonzero()[0]
            origin = heaviest[index // self.shape[1]]
            columns = self.gram[:, index] - self.gram[:, origin]
            reduced = columns[index] - columns[origin]
            factor, pivots, rank, _ = dpstrf(reduced, tol=_FLAT * self.unit, lower=1)
            kept, flat = pivots[:rank] - 1, pivots[rank:] - 1
            basis = np.zeros((len(self.weights), len(index)))
            basis[index, np.arange(len(index))] = 1.0
            basis[origin, np.arange(len(index))] = -1.0
            if not len(flat):
                break
            coupling = np.linalg.solve(reduced[kept[:, None], kept], reduced[kept[:, None], flat])
            self._walk_off(basis[:, flat] - basis[:, kept] @ coupling)
        if rank:
            lower = np.tril(dpotri(factor, lower=1)[0])
            self.inverse = basis[:, kept] @ (lower + np.tril(lower, -1).T) @ basis[:, kept].T
        self.newton()

    def _walk_off(self, flat: FloatArray) -> None:
        """Follow the columns of ``flat``, along which nothing curves, until a source leaves for each."""
        for column in range(flat.shape[1]):
            direction = flat[:, column]
            leaving = self._move(direction if self.gradient @ direction <= 0 else -direction, np.inf)
            later = flat[:, column + 1 :]
            later -= np.outer(direction, later[leaving] / direction[leaving])

    def descend(self) -> None:
        """Let the source of the steepest descent enter until there is none."""
        lowest, patience = np.inf, _PATIENCE
        while patience and self.iterations < self.limit:
            slopes = np.where(self.inside, -np.inf, self.slopes().ravel())
            entering = int(slopes.argmax())
            if slopes[entering] <= self.tolerance:
                return
            self._enter(entering)
            self.newton()
            value = float(self.weights @ (self.gradient - self.linear)) / 2
            patience = _PATIENCE if value < lowest else patience - 1
            lowest = min(lowest, value)

    def _enter(self, source: int) -> None:
        """Widen the face by a source; where that direction is flat, walk along it until another source leaves."""
        first = source - source % self.shape[1]
        block = slice(first, first + self.shape[1])
        while self.inside[block].any():
            self.iterations += 1
            direction = np.zeros_like(self.weights)
            direction[source] = 1.0
            direction[first + np.where(self.inside[block], self.weights[block], -1.0).argmax()] = -1.0
            direction = self._balanced(direction - self.inverse @ (self.gram @ direction))
            curvature = float(direction @ self.gram @ direction)
            if curvature > 16 * _EPSILON * self.unit * float(np.abs(direction).sum()) ** 2:
                self.inverse += np.outer(direction, direction / curvature)
                break
            self._move(direction, np.inf)
        self.inside[source] = True

    def newton(self) -> None:
        """Go to the minimum over the face, dropping the sources that stand in the way."""
        while self.iterations < self.limit:
            self.iterations += 1
            if self._move(self._balanced(self.inverse @ self.slopes().ravel()), 1.0) < 0:
                return

    def _balanced(self, direction: FloatArray) -> FloatArray:
        """A direction whose sum over every block is zero, also after rounding: the heaviest source takes the rest.

        So a source that is alone in its block stays, however large the entries of M that rank-one updates have left.
        """
        change = direction.reshape(self.shape)
        heaviest = np.where(self.inside, self.weights, -1.0).reshape(self.shape).argmax(1)
        change[np.arange(self.shape[0]), heaviest] -= change.sum(1)
        return change.ravel()

    def _move(self, direction: FloatArray, step: float) -> int:
        """Move by ``step``, or to the boundary before it, where a source leaves; its index, or -1."""
        leaving = -1
        towards = (direction < 0).nonzero()[0]
        if len(towards):
            ratios = self.weights[towards] / -direction[towards]
            nearest = int(ratios.argmin())
            if ratios[nearest] < step:
                step, leaving = float(ratios[nearest]), int(towards[nearest])
        self.weights += step * direction
        self.gradient += step * (self.gram @ direction)
        if leaving >= 0:
            self.weights[leaving] = 0.0
            np.maximum(self.weights, 0.0, out=self.weights)
            self.inside[leaving] = False
            row = self.inverse[leaving].copy()
            if row[leaving] > 0:
                self.inverse -= np.outer(row, row / row[leaving])
            self.inverse[leaving] = self.inverse[:, leaving] = 0.0
        return leaving


def _checked(
    gram: Numbers, linear: Numbers, start: Numbers | None, blocks: int
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    matrix, vector = finite_array(gram, "gram"), finite_array(linear, "linear")
    if vector.ndim != 1 or matrix.shape != (len(vector), len(vector)):
        raise ValueError(f"gram has shape {matrix.shape} and linear {vector.shape}; expected (R, R) and (R,)")
    if blocks < 1 or len(vector) % blocks:
        raise ValueError(f"{len(vector)} weights do not divide into {blocks} blocks; expected blocks of one size")
    check_convex(matrix, single=is_single(gram))
    if start is None:
        return matrix, vector, None
    point = finite_array(start, "start")
    if point.shape != vector.shape:
        raise ValueError(f"start has shape {point.shape}; expected {vector.shape}")
    return matrix, vector, feasible_weights(point.reshape(blocks, -1), (blocks, len(vector) // blocks)).ravel()
