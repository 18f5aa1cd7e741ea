r"""The composition problem of one task, as every method sees it, whatever the loss.

.. math:: \min_{w \in \Delta_R,\; \Delta}\; \ell(w, \Delta) + \tfrac{\mathrm{ridge}}{2} \|\Delta\|^2
          \quad\text{with at most } k \text{ blocks of } \Delta \text{ not zero}, \qquad
          \ell(w, \Delta) = \frac1n \sum_i \phi_i\big(x_i^\top (\Theta w + \Delta)\big)

(equation 4 of the multi-source paper, with the ridge written out). The residual is a vector of p **entries** (d of
them, or d K in row-major order for K classes) in a partition of **blocks**; without a partition a block is an entry.
A loss knows its value and derivatives (squared_problem.py, logistic_problem.py); what is minimised over a fixed support
is in refit.py, the search over supports in residual/, the certificate in lower_bound.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import FloatArray

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Blocks:
    """A partition of the entries of the residual.

    Attributes:
        members: the entries of every block.
    """

    members: tuple[Indices, ...]

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def of_entry(self) -> Indices:
        """``(p,)`` the block of every entry."""
        of = np.empty(sum(map(len, self.members)), dtype=np.intp)
        for block, members in enumerate(self.members):
            of[members] = block
        return of

    @cached_property
    def by_size(self) -> list[tuple[Indices, Indices]]:
        """Blocks of equal size together: their numbers ``(m,)`` and entries ``(m, size)``, for batched algebra."""
        sizes = np.array([len(members) for members in self.members])
        numbers = [(sizes == size).nonzero()[0] for size in np.unique(sizes)]
        return [(of, np.stack([self.members[block] for block in of])) for of in numbers]

    def entries(self, support: Indices) -> Indices:
        """The entries of some blocks, block after block."""
        return np.concatenate([np.empty(0, dtype=np.intp), *(self.members[block] for block in support)])

    def squared_norms(self, values: FloatArray) -> FloatArray:
        """``(L,)`` squared norm of every block of ``(p,)`` values."""
        return np.bincount(self.of_entry, values**2, minlength=len(self))

    def largest(self, values: FloatArray, count: int) -> Indices:
        """The ``count`` blocks of largest norm of ``(p,)`` values, fewer when the others are zero, in their order."""
        squares = self.squared_norms(values)
        largest = np.argsort(-squares, kind="stable")[:count]
        return np.sort(largest[squares[largest] > 0])


@dataclass(frozen=True)
class Point:
    """Weights ``(R,)`` in the simplex, and a residual: values ``(s,)`` of some entries ``(s,)``, zero elsewhere."""

    weights: FloatArray
    entries: Indices
    values: FloatArray

    def residual(self, size: int) -> FloatArray:
        """The residual ``(p,)`` with its zeros."""
        dense = np.zeros(size)
        dense[self.entries] = self.values
        return dense

    @classmethod
    def from_residual(cls, weights: FloatArray, residual: FloatArray) -> Self:
        """The point of a residual ``(p,)`` that is mostly zero."""
        entries = residual.nonzero()[0]
        return cls(weights, entries, residual[entries])


@dataclass(frozen=True)
class Gradient:
    """The loss at a point (without the ridge) and its gradient in w ``(R,)`` and in the whole residual ``(p,)``."""

    loss: float
    weights: FloatArray
    residual: FloatArray


@dataclass(frozen=True)
class Expansion:
    """The loss (without the ridge) to second order in w and in the s entries of a point.

    Attributes:
        loss: value at the point.
        weights: ``(R,)`` gradient in w.
        entries: ``(s,)`` gradient in the entries.
        hessian: ``(R + s, R + s)``, weights first.
    """

    loss: float
    weights: FloatArray
    entries: FloatArray
    hessian: FloatArray


class Problem(ABC):
    """One task: its loss, the ridge, the budget of blocks and the partition."""

    features: FloatArray  # (n, d)
    sources: int
    ridge: float
    budget: int
    blocks: Blocks

    @abstractmethod
    def loss(self, point: Point) -> float:
        """The mean loss, without the ridge."""

    @abstractmethod
    def gradient(self, point: Point) -> Gradient:
        """The loss and its gradient in everything."""

    @abstractmethod
    def expand(self, point: Point) -> Expansion:
        """The loss to second order in the weights and in the point's entries."""

    @abstractmethod
    def cross_hessian(self, point: Point) -> FloatArray:
        """``(p, R + s)`` Hessian of the loss, every entry against the weights and the point's entries."""

    @abstractmethod
    def block_hessians(self, point: Point) -> Sequence[FloatArray]:
        """``(m, size, size)`` Hessian of the loss within each block, in the order of ``blocks.by_size``."""

    @abstractmethod
    def with_sources(self, kept: Indices) -> Problem:
        """The same task for some of the sources."""

    @property
    @abstractmethod
    def curvature(self) -> float:
        """Largest second derivative of the loss of an example in its predictions."""

    @abstractmethod
    def unrestricted_loss(self) -> float:
        """A lower bound on the loss of any residual whatever, sparse or not."""

    @property
    def size(self) -> int:
        """Number p of entries of the residual."""
        return len(self.blocks.of_entry)

    def smoothness(self, entries: Indices | None = None) -> float:
        """A Lipschitz constant L of the gradient in some entries (None: all), ridge included."""
        columns = self.features
        if entries is not None:
            columns = columns[:, np.unique(entries // (self.size // columns.shape[1]))]
        largest = float(np.linalg.norm(columns, 2)) if columns.size else 0.0
        return max(self.curvature * largest**2 / len(columns) + self.ridge, np.finfo(np.float64).tiny)

    @cached_property
    def scale(self) -> float:
        """Size of the numbers at hand, from the uniform mixture: what relative tolerances are relative to."""
        uniform = np.full(self.sources, 1 / self.sources)
        gradient = self.gradient(Point(uniform, np.empty(0, dtype=np.intp), np.empty(0)))
        return max(gradient.loss, float(np.abs(gradient.residual).max()), float(np.abs(gradient.weights).max()), 1e-300)
