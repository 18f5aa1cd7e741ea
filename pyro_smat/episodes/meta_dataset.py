"""MetaDatasetSampler: episodes of variable way and of unbalanced shots, as Meta-Dataset samples them.

A stream like that of an :class:`~pyro_smat.episodes.EpisodeSampler`, from the same pools.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.draw import gather
from pyro_smat.episodes.index import checked_span, index_classes, positions
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.scope import Scope
from pyro_smat.episodes.selection import Selection, draw_images

_LOG_WEIGHTS = (math.log(0.5), math.log(2.0))
_COUNTED = 100  # images of a class that count for the size of the support


class MetaDatasetSampler:
    r"""Triantafillou et al. 2020 (Meta-Dataset), section 3.2 and appendix.

    A domain, uniformly; then, with :math:`|c|` the number of images of class c,

    - way: uniform in [5, min(50, classes of the domain)]; that many classes, uniformly;
    - queries of each class: :math:`q = \min(10, \min_c \lfloor |c| / 2 \rfloor)`, the same for all;
    - size of the support: :math:`|S| = \min(500, \sum_c \lceil \beta \min(100, |c| - q) \rceil)`,
      :math:`\beta \sim U(0, 1]`;
    - shots of class c: :math:`k_c = \min(\lfloor R_c (|S| - way) \rfloor + 1, |c| - q)`, where
      :math:`R_c \propto |c| e^{\alpha_c}` and :math:`\alpha_c \sim U(\log .5, \log 2)`.

    Args:
        pool: where images come from; a split of a data set, or several data sets as domains.
        way: inclusive range of the way; the upper end is lowered to what a domain has.
        most_queries: of a class.
        most_support: images of an episode.
        attribute: which labelling; by default the first.
        seed: of the sampler's PCG64 generator.

    Raises:
        ValueError: for a range that is none, an unknown attribute, or a domain with fewer classes of at least two
            images than the smallest way.

    Example:
        >>> from pyro_smat.episodes import glyph_pool
        >>> batch = MetaDatasetSampler(glyph_pool("validation"), seed=1).sample(2)
        >>> [len(names) for names in batch.class_names], batch.support.counts.tolist()
        ([12, 5], [493, 398])
    """

    def __init__(
        self,
        pool: ImagePool,
        way: tuple[int, int] = (5, 50),
        *,
        most_queries: int = 10,
        most_support: int = 500,
        attribute: str | None = None,
        seed: int = 0,
    ) -> None:
        self.pool, self.way = pool, checked_span("way", way, 2)
        if most_queries < 1 or most_support < self.way[1]:
            raise ValueError(
                f"most_queries is {most_queries} and most_support {most_support}; expected at least 1 query and a "
                f"support image for each of {self.way[1]} classes"
            )
        self.most_queries, self.most_support = most_queries, most_support
        a = 0 if attribute is None else positions("attribute", [attribute], pool.attributes)[0]
        domains = list(range(len(pool.domain_names)))
        indices = index_classes(pool, [a], domains, False, {a: None}, 1, 1, pool.pictures)[a]
        for index in indices:
            if len(index.classes) < self.way[0]:
                raise ValueError(
                    f"domain {pool.domain_names[index.domain]!r} has {len(index.classes)} classes of at least two "
                    f"images; expected {self.way[0]} for way {self.way} (lower way, or leave the domain out)"
                )
        self._scope = Scope(pool, {a: indices}, self.way, (1, most_support), (1, most_queries), 1, 1, pool.pictures)
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def __repr__(self) -> str:
        return f"MetaDatasetSampler({self.pool!r}, way={self.way})"

    def sample(self, count: int) -> EpisodeBatch:
        """The next ``count`` episodes.

        Raises:
            ValueError: when ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 episode")
        draws = []
        for _ in range(count):
            group = self._scope.all_indices()
            index = group[self._rng.integers(len(group))]
            way = int(self._rng.integers(self.way[0], min(self.way[1], len(index.classes)) + 1))
            classes = self._rng.choice(index.classes, way, replace=False)
            sizes = np.array([len(index.rows[k]) for k in classes.tolist()])
            shots, queries = support_and_queries(
                sizes, self._rng, most_queries=self.most_queries, most_support=self.most_support
            )
            selection = Selection(classes, [index.rows[k] for k in classes.tolist()])
            draws.append(draw_images(self._scope, index, shots, queries, selection, self._rng))
        return gather(self.pool, draws)


def support_and_queries(
    sizes: Sequence[int] | np.ndarray, rng: np.random.Generator, *, most_queries: int = 10, most_support: int = 500
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
