r"""Logistic loss, binary or multiclass: every evaluation goes through the n examples, with the predictions of the
sources computed once.

Binary: :math:`\phi(z) = \log(1 + e^z) - y z`; K classes: :math:`\phi(z) = \log \sum_c e^{z_c} - z_y`. With s entries
on, value and gradient cost O(n (R + s) K + n d K). The Hessian is :math:`E E^\top / n` with a row of E for every weight
and entry: :math:`V_i` times what it adds to the predictions of example i, :math:`V_i^\top V_i` being the Hessian of
phi.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from scipy.special import expit

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers.problem import Blocks, Expansion, Gradient, Indices, Point, Problem

_CHUNK = 2**22  # numbers at a time in the Hessians of all blocks


class LogisticProblem(Problem):
    """Logistic regression of one task.

    Args:
        features: X ``(n, d)``.
        labels: ``(n,)`` integers, 0 and 1 or 0 to K - 1.
        sources: Theta ``(R, d, T)``: T = 1 logit of class 1, or T = K logits.
        ridge: weight of half the squared norm of the residual.
        budget: k, blocks that may be on.
        blocks: partition of the d T entries, row by row.
    """

    def __init__(
        self,
        features: FloatArray,
        labels: Indices,
        sources: FloatArray,
        *,
        ridge: float,
        budget: int,
        blocks: Blocks,
    ) -> None:
        self.features = features
        self.sources, self.ridge, self.budget, self.blocks = len(sources), ridge, budget, blocks
        self.outputs = sources.shape[2]
        self.predictions = np.einsum("nd,rdt->rnt", features, sources, optimize=True)
        self.targets = labels[:, None].astype(np.float64) if self.outputs == 1 else np.eye(self.outputs)[labels]

    @property
    def curvature(self) -> float:
        return 0.25 if self.outputs == 1 else 0.5

    def loss(self, point: Point) -> float:
        return self._loss(self._logits(point))

    def gradient(self, point: Point) -> Gradient:
        logits = self._logits(point)
        slope = (self._probabilities(logits) - self.targets) / len(logits)
        weights = np.tensordot(self.predictions, slope, 2)
        return Gradient(self._loss(logits), weights, (self.features.T @ slope).ravel())

    def expand(self, point: Point) -> Expansion:
        logits = self._logits(point)
        probabilities = self._probabilities(logits)
        slope = (probabilities - self.targets) / len(logits)
        rows, classes = np.divmod(point.entries, self.outputs)
        entries = np.einsum("ns,ns->s", self.features[:, rows], slope[:, classes])
        factors = self._factors(probabilities, point.entries).reshape(self.sources + len(point.entries), -1)
        weights = np.tensordot(self.predictions, slope, 2)
        return Expansion(self._loss(logits), weights, entries, factors @ factors.T / len(logits))

    def cross_hessian(self, point: Point) -> FloatArray:
        probabilities = self._probabilities(self._logits(point))
        factors = self._factors(probabilities, point.entries)  # (R + s, n, m)
        back = np.einsum("nmt,fnm->ntf", self._root(probabilities), factors, optimize=True)
        product = np.tensordot(self.features, back, (0, 0)) / len(self.features)  # (d, T, R + s)
        return product.reshape(self.size, -1)

    def block_hessians(self, point: Point) -> Sequence[FloatArray]:
        root = self._root(self._probabilities(self._logits(point)))
        return [self._hessians(root, entries) for _, entries in self.blocks.by_size]

    def with_sources(self, kept: Indices) -> LogisticProblem:
        part = copy(self)
        part.sources = len(kept)
        part.predictions = self.predictions[kept]
        return part

    def unrestricted_loss(self) -> float:
        return 0.0  # the infimum when a hyperplane separates the classes, and never above it

    def _hessians(self, root: FloatArray, entries: Indices) -> FloatArray:
        count, size = entries.shape
        found = np.empty((count, size, size))
        step = max(1, _CHUNK // (size * root.shape[0] * root.shape[1]))
        for first in range(0, count, step):
            part = entries[first : first + step]
            factors = self._entry_factors(root, part.ravel()).reshape(*part.shape, -1)
            found[first : first + step] = factors @ factors.mT / len(self.features)
        return found

    def _logits(self, point: Point) -> FloatArray:
        logits = np.tensordot(point.weights, self.predictions, 1)
        rows, classes = np.divmod(point.entries, self.outputs)
        for output in np.unique(classes):
            own = classes == output
            logits[:, output] += self.features[:, rows[own]] @ point.values[own]
        return logits

    def _loss(self, logits: FloatArray) -> float:
        if self.outputs == 1:
            total = np.logaddexp(0.0, logits[:, 0])
        else:
            largest = logits.max(1)
            total = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        return float((total - (self.targets * logits).sum(1)).mean())

    def _probabilities(self, logits: FloatArray) -> FloatArray:
        if self.outputs == 1:
            return expit(logits)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def _root(self, probabilities: FloatArray) -> FloatArray:
        """V ``(n, T, T)``: the Hessian of phi is V'V."""
        if self.outputs == 1:
            return np.sqrt(probabilities * (1 - probabilities))[:, :, None]
        return np.sqrt(probabilities)[:, :, None] * (np.eye(self.outputs) - probabilities[:, None, :])

    def _factors(self, probabilities: FloatArray, entries: Indices) -> FloatArray:
        """E ``(R + s, n, T)``."""
        root = self._root(probabilities)
        weights = np.einsum("nmt,rnt->rnm", root, self.predictions, optimize=True)
        return np.concatenate([weights, self._entry_factors(root, entries)])

    def _entry_factors(self, root: FloatArray, entries: Indices) -> FloatArray:
        rows, classes = np.divmod(entries, self.outputs)
        return self.features.T[rows][:, :, None] * np.moveaxis(root[:, :, classes], 2, 0)
