"""EpisodeSampler: draws few-shot episodes from an ImagePool, with its own generator.

Readers and glyphs make the pool; what is drawn here goes, as an EpisodeBatch, into guides and models. Everything that
can be wrong with a request (too few classes, too few images, unknown names) is said by the constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.confounding import Confounder
from pyro_smat.episodes.corruption import SupportCorruption, noisy_count, replace_labels
from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.index import (
    ClassIndex,
    check_idle_domains,
    check_small_classes,
    index_classes,
    list_small,
    positions,
    wanted_classes,
)
from pyro_smat.episodes.labelled import UNKNOWN, Labelled
from pyro_smat.episodes.pool import ImagePool

__all__ = ["EpisodeSampler", "SupportCorruption"]


class EpisodeSampler:
    """Draws N-way episodes; support and query never share an image.

    For every episode: an attribute, uniformly; way, shot and query, uniformly from their ranges; a domain, uniformly
    among those with enough classes; ``way`` classes in random order (so label k means nothing); images at random, so
    that all other attributes vary. Images are grouped by true label. The same seed gives the same episodes in any
    process, however the draws are cut into batches.

    Args:
        pool: where images come from.
        way: classes of an episode, at least 2; a number or an inclusive range ``(low, high)``, like the next two.
        shot: support images of a class.
        query: query images of a class.
        attributes: names of the attributes that may be the label; all by default.
        domains: names of the domains to draw from; all by default.
        mix_domains: let one episode span all domains; its ``domain`` is then -1 (where there are several).
        imbalance: b in [0, 1). Class k of an episode has max(1, round(shot u_k)) shots, u_k uniform in [1 - b, 1 + b].
        corruption: what is wrong with the supports.
        classes: names of the classes to draw from, or a mapping from attributes to such names; all by default.
        seed: of the sampler's own PCG64 generator.
        skip_small_classes: leave out classes with fewer images than an episode may need, and domains with too few
            classes, instead of raising.

    The true ``route`` of an episode is its attribute (an index into ``pool.attributes``) where the pool has several,
    else its domain where the pool has several, else -1.

    Raises:
        ValueError: for a value outside its range, a name that the pool does not have, fewer usable classes than the
            largest way, classes with too few images, or a confounding that the pool cannot index.

    Example:
        >>> sampler = EpisodeSampler(pool, way=5, shot=(1, 5), query=10, seed=0)  # doctest: +SKIP
        >>> batch = sampler.sample(16)  # doctest: +SKIP
    """

    def __init__(
        self,
        pool: ImagePool,
        way: int | tuple[int, int] = 5,
        shot: int | tuple[int, int] = 5,
        query: int | tuple[int, int] = 10,
        *,
        attributes: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        mix_domains: bool = False,
        imbalance: float = 0.0,
        corruption: SupportCorruption = SupportCorruption(),  # noqa: B008 (frozen)
        classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        skip_small_classes: bool = False,
    ) -> None:
        self.pool = pool
        self.way, self.shot, self.query = _span("way", way, 2), _span("shot", shot, 1), _span("query", query, 1)
        if not 0 <= imbalance < 1:
            raise ValueError(f"imbalance is {imbalance}; expected a number in [0, 1), 0 for equally many shots a class")
        self.imbalance = imbalance
        self.corruption = corruption
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._most_shots = _shots(self.shot[1], 1 + imbalance)

        chosen = positions("attributes", attributes, pool.attributes)
        wanted = wanted_classes(classes, chosen, pool)
        indices = index_classes(
            pool,
            chosen,
            positions("domains", domains, pool.domain_names),
            mix_domains,
            wanted,
            need=self._most_shots + self.query[1],
        )
        self._indices = {a: self._enough(a, indices[a]) for a in chosen}
        if not skip_small_classes:
            check_small_classes(pool, indices, self._most_shots + self.query[1])
            check_idle_domains(pool, indices, self._indices, self.way[0])
        self._check_label_noise()
        self._confounder = Confounder(pool)
        if corruption.confounding > 0:
            for index in (s for group in self._indices.values() for s in group):
                self._confounder.check(index, min(self.way[1], len(index.classes)), self._most_shots)

    def episode(self) -> Episode:
        """The next episode."""
        draw = self._draw()
        names = self.pool.class_names[draw.attribute]
        return Episode(
            self._labelled(torch.from_numpy(draw.support), torch.from_numpy(draw.support_labels)),
            self._labelled(torch.from_numpy(draw.query), torch.from_numpy(draw.query_labels)),
            way=len(draw.classes),
            class_names=tuple(names[k] for k in draw.classes),
            route=self._route(draw),
            domain=draw.domain,
            corrupted_labels=draw.corrupted,
            confounded_with=draw.confounded_with,
        )

    def sample(self, count: int) -> EpisodeBatch:
        """The next ``count`` episodes as a batch: what ``EpisodeBatch.collate`` makes of them, with one image gather.

        Raises:
            ValueError: when ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 episode")
        draws = [self._draw() for _ in range(count)]
        return EpisodeBatch(
            self._labelled(_padded([d.support for d in draws]), _padded([d.support_labels for d in draws])),
            self._labelled(_padded([d.query for d in draws]), _padded([d.query_labels for d in draws])),
            torch.tensor([len(d.classes) for d in draws]),
            route=torch.tensor([self._route(d) for d in draws]),
            domain=torch.tensor([d.domain for d in draws]),
            corrupted_labels=torch.tensor([d.corrupted for d in draws]),
            confounded_with=torch.tensor([d.confounded_with for d in draws]),
        ).to(self.pool.images.device)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state, plain enough for JSON."""
        return {"generator": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the sampler that gave ``state`` stood.

        Raises:
            ValueError: when ``state`` is not what :meth:`state_dict` gives.
        """
        try:
            self._rng.bit_generator.state = dict(state["generator"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"sampler state has keys {sorted(map(str, state))}; expected {{'generator': a PCG64 state}} as "
                "EpisodeSampler.state_dict() gives it"
            ) from error

    def _route(self, draw: _Draw) -> int:
        if len(self.pool.attributes) > 1:
            return draw.attribute
        return draw.domain if len(self.pool.domain_names) > 1 else UNKNOWN

    def _labelled(self, rows: Tensor, labels: Tensor) -> Labelled:
        """Images of rows, -1 where padded."""
        device = self.pool.images.device
        rows, labels = rows.to(device), labels.to(device)
        mask = rows >= 0
        images = self.pool.at(rows.clamp_min(0))
        if not mask.all():
            images[~mask] = 0
        return Labelled(images, labels.clamp_min(0), mask, rows)

    def _draw(self) -> _Draw:
        rng = self._rng
        attributes = list(self._indices)
        attribute = attributes[rng.integers(len(attributes))]
        way, shot, query = (int(rng.integers(low, high + 1)) for low, high in (self.way, self.shot, self.query))
        indices = [s for s in self._indices[attribute] if len(s.classes) >= way]
        index = indices[rng.integers(len(indices))]
        shots = np.full(way, shot)
        if self.imbalance:
            shots = _shots(shot, rng.uniform(1 - self.imbalance, 1 + self.imbalance, size=way))

        if rng.random() < self.corruption.confounding:
            classes, confounder, values = self._confounder.draw(index, shots, rng)
        else:
            classes, confounder = rng.choice(index.classes, way, replace=False), UNKNOWN
            values = np.full(way, UNKNOWN)
        support, queries = [], []
        for k, v, n in zip(classes.tolist(), values.tolist(), shots.tolist(), strict=True):
            rows = index.rows[k]
            drawn = rows[rng.choice(len(rows), n + query, replace=False)]
            if confounder == UNKNOWN:
                support.append(drawn[:n])
                queries.append(drawn[n:])
            else:
                shared = self._confounder.overlap(index, confounder).rows(k, v)
                support.append(shared[rng.choice(len(shared), n, replace=False)])
                unused = (drawn[:, None] != support[-1]).all(1)  # at most n of the n + query are in the support
                queries.append(drawn[unused][:query])

        labels, corrupted = np.repeat(np.arange(way), shots), 0
        low, high = self.corruption.label_noise_range
        if high > 0 and rng.random() < self.corruption.label_noise_probability:
            labels, corrupted = replace_labels(labels, way, rng.uniform(low, high) if low < high else low, rng)
        return _Draw(
            attribute=attribute,
            domain=index.domain,
            classes=[int(k) for k in classes],
            support=np.concatenate(support),
            support_labels=labels,
            query=np.concatenate(queries),
            query_labels=np.repeat(np.arange(way), query),
            corrupted=corrupted,
            confounded_with=confounder,
        )

    def _enough(self, attribute: int, indices: list[ClassIndex]) -> list[ClassIndex]:
        """The indices that can give some episode; refuse when none can give the largest."""
        most = max(indices, key=lambda s: len(s.classes))
        if len(most.classes) < self.way[1]:
            need = self._most_shots + self.query[1]
            where = "any one domain" if len(indices) > 1 else "the pool"
            raise ValueError(
                f"attribute {self.pool.attributes[attribute]!r} has {len(most.classes)} classes with at least {need} "
                f"images in {where}; expected {self.way[1]} for way {self.way[1]} ({self._most_shots} shots and "
                f"{self.query[1]} queries of each). {list_small(self.pool, indices)}Lower way, shot or query, or "
                "leave the attribute out"
            )
        return [s for s in indices if len(s.classes) >= self.way[0]]

    def _check_label_noise(self) -> None:
        if self.corruption.label_noise_probability == 0:
            return
        high = self.corruption.label_noise_range[1]
        way = self.way[1]
        size = way * self._most_shots
        if noisy_count(high, size) > size - way:
            raise ValueError(
                f"label_noise {high} replaces {noisy_count(high, size)} of {size} labels of a {way}-way "
                f"{self._most_shots}-shot support; expected at most {size - way}, for every class keeps one true shot "
                "(raise shot or lower label_noise)"
            )


@dataclass(frozen=True)
class _Draw:
    """The rows and labels of one episode, before any image is touched."""

    attribute: int
    domain: int
    classes: list[int]
    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    corrupted: int
    confounded_with: int


def _span(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int | np.integer) for v in pair):
        raise ValueError(f"{name} is {value!r}; expected an integer or a range (low, high) of integers")
    if not least <= pair[0] <= pair[1]:
        raise ValueError(f"{name} is {value!r}; expected at least {least}, and low <= high in a range (low, high)")
    return int(pair[0]), int(pair[1])


def _shots(shot: int, factor: Any) -> Any:
    """max(1, round(shot * factor)), halves up."""
    return np.maximum(1, np.floor(shot * np.asarray(factor) + 0.5)).astype(np.int64)


def _padded(rows: list[np.ndarray]) -> Tensor:
    """``(B, longest)`` long, -1 where a row has ended."""
    table = np.full((len(rows), max(map(len, rows))), UNKNOWN, dtype=np.int64)
    for line, values in zip(table, rows, strict=True):
        line[: len(values)] = values
    return torch.from_numpy(table)
