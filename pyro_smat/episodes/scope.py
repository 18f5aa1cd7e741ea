"""Scope: everything that an episode can be drawn from. The sampler builds one; corruptions ask it what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.pool import ImagePool


@dataclass(frozen=True)
class Overlap:
    """Rows by (class, value of another attribute): ``counts`` (K, V), and where the run of each pair ends."""

    counts: np.ndarray
    order: np.ndarray
    ends: np.ndarray

    def rows(self, k: int, v: int) -> np.ndarray:
        """The rows of class k with value v."""
        return self.order[self.ends[k, v] - self.counts[k, v] : self.ends[k, v]]


@dataclass(frozen=True, eq=False)
class Scope:
    """What a sampler draws from.

    Attributes:
        pool: the images.
        indices: for every attribute the domains (or all as one) that have enough classes.
        way, shot, query: inclusive ranges, as asked for.
        most_shots, most_queries: images of a class that an episode can need, corruptions considered.
        pictures: see :attr:`ImagePool.pictures`; None where identical pictures need no care.
    """

    pool: ImagePool
    indices: Mapping[int, list[ClassIndex]]
    way: tuple[int, int]
    shot: tuple[int, int]
    query: tuple[int, int]
    most_shots: int
    most_queries: int
    pictures: np.ndarray | None = None
    _overlaps: dict[tuple[int, int, int], Overlap] = field(default_factory=dict, init=False, repr=False)

    def all_indices(self) -> list[ClassIndex]:
        """Those of all attributes."""
        return [index for group in self.indices.values() for index in group]

    def widest(self, index: ClassIndex) -> int:
        """The largest way of an episode from an index."""
        return min(self.way[1], len(index.classes))

    def other_attributes(self, index: ClassIndex) -> list[int]:
        """All but the index's own."""
        return [b for b in range(len(self.pool.attributes)) if b != index.attribute]

    def overlap(self, index: ClassIndex, b: int) -> Overlap:
        """What the index's attribute shares with attribute b; computed when first needed."""
        key = (index.attribute, index.domain, b)
        if key not in self._overlaps:
            shape = (len(self.pool.class_names[index.attribute]), len(self.pool.class_names[b]))
            rows = np.concatenate([index.rows[k] for k in index.classes.tolist()])
            pairs = self._labels[index.attribute, rows] * shape[1] + self._labels[b, rows]
            counts = np.bincount(pairs, minlength=shape[0] * shape[1])
            self._overlaps[key] = Overlap(
                counts.reshape(shape), rows[np.argsort(pairs, kind="stable")], np.cumsum(counts).reshape(shape)
            )
        return self._overlaps[key]

    def show(self, rows: np.ndarray | int) -> np.ndarray:
        """What rows show: equal numbers for identical pictures, where these are kept apart; else the rows."""
        return np.asarray(rows if self.pictures is None else self.pictures[rows])

    def described(self, index: ClassIndex) -> str:
        """An index in an error message, for example "attribute 'shape' in domain 'day'"."""
        where = f" in domain {self.pool.domain_names[index.domain]!r}" if index.domain >= 0 else ""
        return f"attribute {self.pool.attributes[index.attribute]!r}{where}"

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.ascontiguousarray(self.pool.labels.cpu().numpy().T)  # (attributes, images)
