r"""What the simplex solvers minimise: a function of composition weights, with its derivatives.

A solver knows a :class:`SimplexObjective` by value and gradient, enough for Frank-Wolfe, also where the function is the
support loss of a composed deep network. An objective that has a Hessian too is a :class:`CurvedObjective`; it can be
minimised by Newton steps, each an exact quadratic program. The two losses on frozen features are here. Both work in
prediction space: sources enter by what they predict on the support, never by their parameters.
"""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

import numpy as np
from scipy.special import logsumexp, softmax

from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.solvers.validation import check_convex, finite_array, is_single


class SimplexObjective(Protocol):
    """A differentiable function of weights in a simplex ``(R,)``, or in a product of simplices ``(L, R)``.

    Attributes:
        shape: ``(R,)`` or ``(L, R)``.
        convex: whether a Frank-Wolfe gap bounds value minus optimum; if not, it measures stationarity.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def convex(self) -> bool: ...

    def value(self, weights: FloatArray) -> float:
        """The function at weights of that shape."""
        ...

    def gradient(self, weights: FloatArray) -> FloatArray:
        """Its gradient, in the shape of the weights; a constant added to a block changes nothing."""
        ...


@runtime_checkable
class CurvedObjective(SimplexObjective, Protocol):
    """A convex objective with second derivatives."""

    def hessian(self, weights: FloatArray) -> FloatArray:
        """The Hessian ``(R, R)``, or ``(L * R, L * R)`` with blocks one after the other."""
        ...


class QuadraticObjective:
    r""":math:`f(w) = \tfrac12 w^\top G w - b^\top w + c`, the squared loss as sufficient statistics.

    Args:
        gram: G ``(R, R)``, or ``(L * R, L * R)`` for blockwise weights; symmetric positive semidefinite.
        linear: b, in the shape of the weights: ``(R,)`` or ``(L, R)``.
        constant: c.

    Raises:
        ValueError: for shapes that do not fit, NaN or infinity, or a gram that is not symmetric positive semidefinite.
    """

    def __init__(self, gram: Numbers, linear: Numbers, constant: float = 0.0) -> None:
        self.gram, self.linear, self.constant = finite_array(gram, "gram"), finite_array(linear, "linear"), constant
        if self.linear.ndim not in (1, 2) or self.gram.shape != (self.linear.size, self.linear.size):
            raise ValueError(
                f"gram has shape {self.gram.shape} and linear {self.linear.shape}; expected (R, R) with (R,), "
                "or (L * R, L * R) with (L, R)"
            )
        self.shape, self.convex = self.linear.shape, True
        check_convex(self.gram, single=is_single(gram))

    @classmethod
    def from_predictions(cls, predictions: Numbers, targets: Numbers) -> Self:
        r"""The squared loss :math:`\tfrac1{2n} \|A w - y\|^2` of a mixture, for weights that sum to 1.

        The statistics are those of the sources' errors, :math:`G = (A - y 1^\top)^\top (A - y 1^\top) / n` with b = 0,
        which lose no digits when errors are small beside the targets. Off the simplex the function is another.

        Args:
            predictions: A ``(n, R)``, of every source for every example; or ``(n, L, R)``, contributions of the blocks
                of which a prediction is the sum.
            targets: y ``(n,)``.

        Raises:
            ValueError: for shapes that do not fit, n = 0, R = 0, NaN or infinity.
        """
        matrix, goal = finite_array(predictions, "predictions"), finite_array(targets, "targets")
        if matrix.ndim not in (2, 3) or goal.shape != matrix.shape[:1]:
            raise ValueError(
                f"predictions have shape {matrix.shape} and targets {goal.shape}; expected (n, R) or (n, L, R) and (n,)"
            )
        blocks = 1 if matrix.ndim == 2 else matrix.shape[1]
        errors = matrix.reshape(len(goal), -1) - goal[:, None] / blocks
        return cls(errors.T @ errors / len(goal), np.zeros(matrix.shape[1:]))

    def value(self, weights: FloatArray) -> float:
        flat = weights.ravel()
        return float(flat @ (self.gram @ flat / 2 - self.linear.ravel())) + self.constant

    def gradient(self, weights: FloatArray) -> FloatArray:
        return (self.gram @ weights.ravel()).reshape(self.shape) - self.linear

    def hessian(self, weights: FloatArray) -> FloatArray:
        return self.gram


class LogisticObjective:
    r"""Mean cross-entropy of the mixed logits, :math:`f(w) = \tfrac1n \sum_i -\log p_{y_i}(\sum_r w_r A_{ir})`.

    Args:
        predictions: logits A of every source for every example: ``(n, R)``, log-odds of label 1; ``(n, R, K)``, of K
            classes; or ``(n, L, R, K)``, contributions of the blocks of which the logits are the sum.
        labels: ``(n,)`` integers in 0 .. K - 1, or 0 and 1.

    Raises:
        ValueError: for shapes that do not fit, n = 0, R = 0, NaN or infinity, or labels out of range.
    """

    def __init__(self, predictions: Numbers, labels: Numbers) -> None:
        logits, targets = finite_array(predictions, "predictions"), finite_array(labels, "labels")
        if logits.ndim not in (2, 3, 4) or targets.shape != logits.shape[:1]:
            raise ValueError(
                f"predictions have shape {logits.shape} and labels {targets.shape}; expected (n, R), (n, R, K) or "
                "(n, L, R, K) and (n,)"
            )
        if logits.ndim == 2:  # log-odds are the logits (0, a)
            logits = np.stack([np.zeros_like(logits), logits], axis=-1)
        classes = logits.shape[-1]
        if not np.isin(targets, np.arange(classes)).all():
            wrong = targets[~np.isin(targets, np.arange(classes))][0]
            raise ValueError(f"labels hold {wrong:g}; expected integers from 0 to {classes - 1}")
        self.shape, self.convex = logits.shape[1:-1], True
        self._logits = np.ascontiguousarray(logits.reshape(len(targets), -1, classes).swapaxes(0, 1))  # (L * R, n, K)
        self._examples, self._labels = np.arange(len(targets)), targets.astype(np.intp)

    def value(self, weights: FloatArray) -> float:
        mixed = self._mixed(weights)
        return float((logsumexp(mixed, axis=1) - mixed[self._examples, self._labels]).mean())

    def gradient(self, weights: FloatArray) -> FloatArray:
        slopes = softmax(self._mixed(weights), axis=1)
        slopes[self._examples, self._labels] -= 1.0
        return np.tensordot(self._logits, slopes, 2).reshape(self.shape) / len(slopes)

    def hessian(self, weights: FloatArray) -> FloatArray:
        probabilities = softmax(self._mixed(weights), axis=1)
        centred = self._logits - np.einsum("rnk,nk->rn", self._logits, probabilities)[..., None]
        root = (centred * np.sqrt(probabilities)).reshape(len(centred), -1)
        return root @ root.T / len(probabilities)

    def _mixed(self, weights: FloatArray) -> FloatArray:
        return np.tensordot(weights.ravel(), self._logits, 1)
