r"""Squared loss :math:`\frac1{2n} \|X(\Theta w + \Delta) - y\|^2` from sufficient statistics: examples are seen once.

Weights sum to 1, so what is squared is :math:`E w + X \Delta` with the sources' errors :math:`E = X \Theta - y 1^\top`;
no digits are lost where errors are small beside the targets. Set-up costs O(n d R): :math:`E^\top E` and
:math:`X^\top E`. A column of :math:`X^\top X` costs O(n d) when its entry first joins a support, and is kept. After
that a gradient in the whole residual costs O(d (R + s)) for s entries on, a refit O(s^3 + s^2 R) and the quadratic
program of the weights, and neither touches the n examples. Only a dense residual (s >= n, which no sparse search
needs) goes through them, being cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property

import numpy as np

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Blocks, Expansion, Gradient, Indices, Point, Problem


class _GramColumns:
    """Columns of X'X / n, computed when first asked for."""

    def __init__(self, features: FloatArray) -> None:
        self.features = features
        self.place = np.full(features.shape[1], -1, dtype=np.intp)
        self.known = 0
        self.rows = np.empty((0, features.shape[1]))  # by symmetry rows, which are contiguous

    def __call__(self, entries: Indices) -> FloatArray:
        """``(s, d)``."""
        new = entries[self.place[entries] < 0]
        if len(new):
            if self.known + len(new) > len(self.rows):
                grown = np.empty((2 * (self.known + len(new)), self.rows.shape[1]))
                grown[: self.known] = self.rows[: self.known]
                self.rows = grown
            self.place[new] = np.arange(self.known, self.known + len(new))
            self.rows[self.place[new]] = self.features[:, new].T @ self.features / len(self.features)
            self.known += len(new)
        return self.rows[self.place[entries]]


class SquaredProblem(Problem):
    """Least squares of one task.

    Args:
        features: X ``(n, d)``.
        targets: y ``(n,)``.
        sources: Theta ``(R, d)``.
        ridge: weight of half the squared norm of the residual.
        budget: k, blocks that may be on.
        blocks: partition of the d entries.
    """

    curvature = 1.0

    def __init__(
        self,
        features: FloatArray,
        targets: FloatArray,
        sources: FloatArray,
        *,
        ridge: float,
        budget: int,
        blocks: Blocks,
    ) -> None:
        self.features, self.targets = features, targets
        self.sources, self.ridge, self.budget, self.blocks = len(sources), ridge, budget, blocks
        errors = features @ sources.T - targets[:, None]
        self.weight_gram = errors.T @ errors / len(features)
        self.cross_moment = features.T @ errors / len(features)  # (d, R)
        self.gram = _GramColumns(features)

    def loss(self, point: Point) -> float:
        w, values = point.weights, point.values
        linear = self.cross_moment[point.entries] @ w
        quadratic = w @ self.weight_gram @ w + values @ self._entry_gram(point.entries) @ values
        return float(quadratic / 2 + linear @ values)

    def gradient(self, point: Point) -> Gradient:
        w, entries, values = point.weights, point.entries, point.values
        if len(entries) < len(self.features):
            product = values @ self.gram(entries)
        else:
            product = (self.features[:, entries] @ values) @ self.features / len(self.features)
        weights, linear = self.weight_gram @ w, self.cross_moment @ w
        loss = w @ weights / 2 + values @ (linear[entries] + product[entries] / 2)
        return Gradient(float(loss), weights + values @ self.cross_moment[entries], linear + product)

    def expand(self, point: Point) -> Expansion:
        w, values, count = point.weights, point.values, self.sources
        cross, gram = self.cross_moment[point.entries], self._entry_gram(point.entries)
        weights, linear, product = self.weight_gram @ w, cross @ w, gram @ values
        hessian = np.empty((count + len(values),) * 2)
        hessian[:count, :count], hessian[count:, count:] = self.weight_gram, gram
        hessian[count:, :count], hessian[:count, count:] = cross, cross.T
        loss = w @ weights / 2 + values @ (linear + product / 2)
        return Expansion(float(loss), weights + values @ cross, linear + product, hessian)

    def cross_hessian(self, point: Point) -> FloatArray:
        return np.concatenate([self.cross_moment, self.gram(point.entries).T], axis=1)

    def block_hessians(self, point: Point) -> Sequence[FloatArray]:
        return self._block_grams

    def with_sources(self, kept: Indices) -> SquaredProblem:
        part = copy(self)  # and shares the columns of X'X
        part.sources = len(kept)
        part.weight_gram = self.weight_gram[np.ix_(kept, kept)]
        part.cross_moment = self.cross_moment[:, kept]
        return part

    def unrestricted_loss(self) -> float:
        best = np.linalg.lstsq(self.features, self.targets, rcond=None)[0]
        # The rest is orthogonal to the features up to rounding; what is left along them is taken off its square.
        rest = self.targets - self.features @ best
        return max(0.0, (float(rest @ rest) - 1e-12 * float(self.targets @ self.targets)) / 2 / len(rest))

    @cached_property
    def _block_grams(self) -> Sequence[FloatArray]:
        grams = []
        for _, entries in self.blocks.by_size:
            columns = self.features.T[entries]  # (m, size, n)
            grams.append(columns @ columns.mT / len(self.features))
        return grams

    def _entry_gram(self, entries: Indices) -> FloatArray:
        if len(entries) < len(self.features):
            return self.gram(entries)[:, entries]
        columns = self.features[:, entries]
        return columns.T @ columns / len(self.features)
