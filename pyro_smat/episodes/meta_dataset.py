"""MetaDatasetSampler: episodes of variable way and of unbalanced shots, as Meta-Dataset samples them.

An :class:`~pyro_smat.episodes.EpisodeSampler` whose sizes are drawn otherwise; ``[episodes] kind = "meta_dataset"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_smat.episodes.corruptions.corruption import CorruptionLike
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex, checked_span, positions
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.episodes.selection import Selection, draw_images

WAY = (5, 50)
MOST_QUERIES, MOST_SUPPORT = 10, 500
_LOG_WEIGHTS = (math.log(0.5), math.log(2.0))
_COUNTED = 100  # images of a class that count for the size of the support


class MetaDatasetSampler(EpisodeSampler):
    r"""Triantafillou et al. 2020 (Meta-Dataset), section 3.2 and the sampler of its repository (``sampling.py``).

    An attribute and a domain, uniformly; then, with :math:`|c|` the number of images of class c,

    - way: uniform in [5, min(50, classes of the domain)]; that many classes, uniformly. With ``within``, a value of
      that attribute first, uniformly (Omniglot's alphabets), and its classes alone;
    - queries of each class: :math:`q = \min(10, \min_c \lfloor |c| / 2 \rfloor)`, the same for all;
    - size of the support: :math:`|S| = \min(500, \sum_c \lceil \beta \min(100, |c| - q) \rceil)`,
      :math:`\beta \sim U(0, 1]`;
    - shots of class c: :math:`k_c = \min(\lfloor R_c (|S| - way) \rfloor + 1, |c| - q)`, where
      :math:`R_c \propto |c| e^{\alpha_c}` and :math:`\alpha_c \sim U(\log .5, \log 2)`.

    The published sampler draws ImageNet's classes below a node of WordNet; here they are drawn uniformly, unless the
    pool has an attribute for ``within``.

    Args:
        pool: where images come from; a split of a data set, or several data sets as domains.
        way: inclusive range of the way; the upper end is lowered to what there is.
        most_queries: of a class.
        most_support: images of an episode.
        within: an attribute of the pool whose value all classes of an episode share; None for no such.
        corruptions: as an :class:`EpisodeSampler` takes them, but for those that change counts or choose classes.
        options: the other arguments of an :class:`EpisodeSampler`. Classes need at least two images.

    Raises:
        ValueError: as an :class:`EpisodeSampler`, for a corruption that shapes the episode, or a class that has images
            of several values of ``within``.

    Example:
        >>> from pyro_smat.episodes import glyph_pool
        >>> batch = MetaDatasetSampler(glyph_pool("validation"), attributes=["letter"], seed=1).sample(2)
        >>> [5 <= len(names) <= 50 for names in batch.class_names], bool((batch.support.counts <= 500).all())
        ([True, True], True)
    """

    def __init__(
        self,
        pool: ImagePool,
        way: tuple[int, int] = WAY,
        *,
        most_queries: int = MOST_QUERIES,
        most_support: int = MOST_SUPPORT,
        within: str | None = None,
        corruptions: Sequence[CorruptionLike] = (),
        seed: int = 0,
        **options: Any,
    ) -> None:
        low, high = checked_span("way", way, 2)
        if most_queries < 1 or most_support < high:
            raise ValueError(
                f"most_queries is {most_queries} and most_support {most_support}; expected at least 1 query and a "
                f"support image for each of {high} classes"
            )
        super().__init__(pool, low, 1, 1, seed=seed, **options)
        self._take(corruptions)
        shaping = [c.name for c in (*self._counts, *self._choices)]
        if shaping:
            raise ValueError(
                f"corruptions {shaping} change counts or choose classes, which the sampler does itself; expected others"
            )
        self.way, self.most_queries, self.most_support, self.within = (low, high), most_queries, most_support, within
        self._options = options
        most = most_support // high, most_queries
        self._scope = replace(
            self._scope, way=self.way, shot=(1, most[0]), query=(1, most[1]), most_shots=most[0], most_queries=most[1]
        )
        for corruption in self.corruptions:
            corruption.check(self._scope)
        self._groups = {(index.attribute, index.domain): self._grouped(index) for index in self._scope.all_indices()}

    def __repr__(self) -> str:
        within = f", within={self.within!r}" if self.within else ""
        wrong = f", corruptions=[{', '.join(map(str, self.corruptions))}]" if self.corruptions else ""
        return f"MetaDatasetSampler({self.pool!r}, way={self.way}{within}{wrong}, seed={self._seed})"

    def with_corruptions(self, corruptions: Sequence[CorruptionLike], *, seed_offset: int = 0) -> MetaDatasetSampler:
        """See :meth:`EpisodeSampler.with_corruptions`."""
        return MetaDatasetSampler(
            self.pool,
            self.way,
            most_queries=self.most_queries,
            most_support=self.most_support,
            within=self.within,
            corruptions=corruptions,
            seed=self._seed + seed_offset,
            **self._options,
        )

    def _draw(self, rng: np.random.Generator) -> Draw:
        attributes = list(self._scope.indices)
        indices = self._scope.indices[attributes[rng.integers(len(attributes))]]
        index = indices[rng.integers(len(indices))]
        groups = self._groups[index.attribute, index.domain]
        group = groups[rng.integers(len(groups))]
        way = int(rng.integers(self.way[0], min(self.way[1], len(group.classes)) + 1))
        classes = rng.choice(group.classes, way, replace=False)
        rows = [group.rows[k] for k in classes.tolist()]
        sizes = np.array([len(one) for one in rows])
        shots, queries = support_and_queries(sizes, rng, most_queries=self.most_queries, most_support=self.most_support)
        draw = draw_images(self._scope, index, shots, queries, Selection(classes, rows), rng)
        return self._corrupted(draw, index, [], rng)

    def _grouped(self, index: ClassIndex) -> list[ClassIndex]:
        """The classes of an index by the value of ``within`` that they have."""
        if self.within is None:
            return [index]
        attribute = positions("within", [self.within], self.pool.attributes)[0]
        values = self.pool.labels[:, attribute].cpu().numpy()
        members: dict[int, list[int]] = {}
        for k in index.classes.tolist():
            found = np.unique(values[index.rows[k]])
            if len(found) > 1:
                raise ValueError(
                    f"class {self.pool.class_names[index.attribute][k]!r} has images of {len(found)} values of "
                    f"{self.within!r}; expected one, so that episodes can stay within it"
                )
            members.setdefault(int(found[0]), []).append(k)
        wide = {v: ks for v, ks in members.items() if len(ks) >= self.way[0]}
        if not wide:
            raise ValueError(
                f"no value of {self.within!r} has {self.way[0]} classes in {self._scope.described(index)}; expected at "
                "least one: lower way, or leave within out"
            )
        return [
            replace(index, classes=np.array(ks), rows={k: index.rows[k] for k in ks}) for _, ks in sorted(wide.items())
        ]


def support_and_queries(
    sizes: Sequence[int] | np.ndarray,
    rng: np.random.Generator,
    *,
    most_queries: int = MOST_QUERIES,
    most_support: int = MOST_SUPPORT,
) -> tuple[np.ndarray, np.ndarray]:
    """Shots and queries ``(way,)`` of classes with so many images, by the formulas of :class:`MetaDatasetSampler`.

    Example:
        >>> import numpy as np
        >>> shots, queries = support_and_queries([4, 20, 1000], np.random.default_rng(0))
        >>> queries.tolist(), int(shots.max()) <= 990, int(shots.min()) >= 1
        ([2, 2, 2], True, True)
    """
    sizes = np.asarray(sizes)
    query = min(most_queries, int(sizes.min()) // 2)
    left = sizes - query
    beta = 1.0 - rng.random()  # in (0, 1]
    support = min(most_support, int(np.ceil(beta * np.minimum(_COUNTED, left)).sum()))
    weights = sizes * np.exp(rng.uniform(*_LOG_WEIGHTS, len(sizes)))
    shots = np.floor(weights / weights.sum() * (support - len(sizes))).astype(np.int64) + 1
    return np.minimum(shots, left), np.full(len(sizes), query)
