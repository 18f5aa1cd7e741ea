"""Confounding: supports in which a second attribute tells the classes apart as well as the true one does.

The sampler asks :class:`Confounder` for classes, for the confounding attribute and for one value of it a class, and
then draws the support from the images that have both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.pool import ImagePool

_REDRAWS = 100  # sets of classes that are tried before a confounded episode is called impossible


class Confounder:
    """Finds confounded classes in a pool with several attributes."""

    def __init__(self, pool: ImagePool) -> None:
        self._pool = pool
        self._labels = np.ascontiguousarray(pool.labels.cpu().numpy().T)  # (attributes, images)
        self._overlaps: dict[tuple[int, int, int], Overlap] = {}

    def check(self, index: ClassIndex, way: int, shots: int) -> None:
        """Refuse a index that has no confounded ``way``-way episode with ``shots`` shots of each class.

        Raises:
            ValueError: when the pool has one attribute, or no other one gives ``way`` classes values of their own.
        """
        names = self._pool.attributes
        if len(names) < 2:
            raise ValueError(
                f"the support cannot be confounded: the pool has the one attribute {names[0]!r}; expected at least "
                "two, or confounding = 0"
            )
        if not any(self._assignable(index, b, shots) >= way for b in self._others(index)):
            raise ValueError(self._thinnest(index, way, shots))

    def draw(
        self, index: ClassIndex, shots: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """Classes, a confounding attribute b, and for every class its own value of b that enough of its images have.

        Other values and other attributes are tried before other classes.

        Args:
            index: where the classes come from.
            shots: ``(way,)`` images that each class needs in common with its value.
            rng: source of randomness.

        Returns:
            ``(way,)`` classes, b, and ``(way,)`` values, no value twice.

        Raises:
            ValueError: when 100 sets of classes had no such values.
        """
        others = self._others(index)
        for _ in range(_REDRAWS):
            classes = rng.choice(index.classes, len(shots), replace=False)
            for b in rng.permutation(others).tolist():
                values = distinct_values(self.overlap(index, b).counts[classes] >= shots[:, None], rng)
                if (values >= 0).all():
                    return classes, b, values
        raise ValueError(
            f"no confounded episode in {_REDRAWS} draws: {self._thinnest(index, len(shots), int(shots.max()))}"
        )

    def overlap(self, index: ClassIndex, b: int) -> Overlap:
        """What the index's attribute shares with attribute b; computed when first needed."""
        key = (index.attribute, index.domain, b)
        if key not in self._overlaps:
            shape = (len(self._pool.class_names[index.attribute]), len(self._pool.class_names[b]))
            rows = np.concatenate([index.rows[k] for k in index.classes.tolist()])
            pairs = self._labels[index.attribute, rows] * shape[1] + self._labels[b, rows]
            counts = np.bincount(pairs, minlength=shape[0] * shape[1])
            self._overlaps[key] = Overlap(
                counts.reshape(shape), rows[np.argsort(pairs, kind="stable")], np.cumsum(counts).reshape(shape)
            )
        return self._overlaps[key]

    def _others(self, index: ClassIndex) -> list[int]:
        return [b for b in range(len(self._pool.attributes)) if b != index.attribute]

    def _assignable(self, index: ClassIndex, b: int, shots: int) -> int:
        """The most classes that can have distinct values of b at once."""
        eligible = self.overlap(index, b).counts[index.classes] >= shots
        return int((distinct_values(eligible, np.random.Generator(np.random.PCG64(0))) >= 0).sum())

    def _thinnest(self, index: ClassIndex, way: int, shots: int) -> str:
        names = self._pool.attributes
        others = self._others(index)
        best = np.stack([self.overlap(index, b).counts[index.classes].max(1) for b in others]).max(0)
        worst = int(best.argmin())
        covered = max(self._assignable(index, b, shots) for b in others)
        where = f" in domain {self._pool.domain_names[index.domain]!r}" if index.domain >= 0 else ""
        return (
            f"attribute {names[index.attribute]!r}{where} cannot be confounded with {[names[b] for b in others]}; "
            f"expected {way} classes with a value of their own that {shots} of their images share, found at most "
            f"{covered}; class {self._pool.class_names[index.attribute][index.classes[worst]]!r} has at most "
            f"{best[worst]} images that share a value (lower way, shot or imbalance, or leave the attribute out)"
        )


@dataclass(frozen=True)
class Overlap:
    """Rows by (class, value of another attribute): ``counts`` (K, V), and where the run of each pair ends."""

    counts: np.ndarray
    order: np.ndarray
    ends: np.ndarray

    def rows(self, k: int, v: int) -> np.ndarray:
        """The rows of class k with value v."""
        return self.order[self.ends[k, v] - self.counts[k, v] : self.ends[k, v]]


def distinct_values(eligible: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random assignment of values to classes, no value twice, that covers as many classes as possible.

    Args:
        eligible: ``(K, V)`` bool, True where class k may take value v.
        rng: source of randomness.

    Returns:
        ``(K,)`` int: the value of each class, -1 for a class that is left over. Where a complete assignment exists it
        is found (first fit, else Hopcroft and Karp, on shuffled values), so a -1 means that there is none.
    """
    order = rng.permutation(eligible.shape[1])
    free, first_fit = order.tolist(), []
    for row in eligible.tolist():  # nearly always enough, and much faster than the general matching
        value = next((v for v in free if row[v]), None)
        if value is None:
            break
        free.remove(value)
        first_fit.append(value)
    else:
        return np.array(first_fit)
    match = maximum_bipartite_matching(csr_array(eligible[:, order]), perm_type="column")
    return np.where(match >= 0, order[match], -1)
