"""EpisodeSampler: draws few-shot episodes from an ImagePool, with its own generator.

Readers and glyphs make the pool; what is drawn here goes, as an EpisodeBatch, into guides and models. Everything that
can be wrong with a request (too few classes, too few images, unknown names) is said by the constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.corruptions.corruption import (
    ChoiceCorruption,
    CorruptionLike,
    CountCorruption,
    PixelCorruption,
    RowCorruption,
    make_corruptions,
)
from pyro_smat.episodes.draw import Draw, gather
from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.index import (
    ClassIndex,
    ClassNames,
    check_idle_domains,
    check_small_classes,
    checked_span,
    enough_classes,
    index_classes,
    positions,
    wanted_classes,
)
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.scope import Scope
from pyro_smat.episodes.selection import draw_images

__all__ = ["EpisodeSampler"]


class EpisodeSampler:
    """Draws N-way episodes; support and query never share an image.

    For every episode: an attribute, uniformly; way, shot and query, uniformly from their ranges; a domain, uniformly
    among those with enough classes; ``way`` classes in random order (so label k means nothing); images at random, so
    that all other attributes vary. Images are grouped by true label.

    There are two ways to the same distribution of episodes. :meth:`sample` and :meth:`episode` continue one stream: the
    same seed gives the same episodes in any process, however the draws are cut into batches, and :meth:`state_dict`
    says where the stream stands. :meth:`at` numbers episodes: number i has a generator of its own, seeded by (seed, i),
    and is the same whoever asks for it, in any order, so that processes can share numbers out; it neither reads nor
    moves the stream, and ``at(i)`` is not the stream's i-th episode.

    Args:
        pool: where images come from.
        way: classes of an episode, at least 2; a number or an inclusive range ``(low, high)``, like the next two.
        shot: support images of a class.
        query: query images of a class.
        attributes: names of the attributes that may be the label; all by default.
        domains: names of the domains to draw from; all by default.
        mix_domains: let one episode span all domains; its ``domain`` is then -1 (where there are several).
        corruptions: what goes wrong, see :mod:`pyro_smat.episodes.corruptions`: objects, names, or tables such as
            ``{"kind": "label_noise", "fraction": (0, 0.5), "probability": 0.5}``.
        classes: names of the classes to draw from, or a mapping from attributes to such names; all by default.
        exclude_classes: likewise, names of classes to leave out, for example those that a source was trained on.
        seed: of the sampler's own PCG64 generators, at least 0.
        skip_small_classes: leave out classes with fewer images than an episode may need, and domains with too few
            classes, instead of raising.
        identical_apart: keep pictures that are identical to the pixel (:meth:`ImagePool.duplicates`) out of support and
            query of one episode, too; changes nothing for a pool without such.

    The true ``route`` of an episode is its attribute (an index into ``pool.attributes``) where the pool has several,
    else its domain where the pool has several, else -1.

    Raises:
        ValueError: for a value outside its range, a name that the pool does not have, fewer usable classes than the
            largest way, classes with too few images, or a corruption that the pool cannot show.

    Example:
        >>> from pyro_smat.episodes import glyph_pool
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 5, 5, 10, corruptions=["label_noise"], seed=0)
        >>> sampler.sample(16)
        EpisodeBatch(16 episodes, 5-way, 25 support, 50 query, 1x32x32)
        >>> sampler.at(7).corrupted_labels
        10
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
        corruptions: Sequence[CorruptionLike] = (),
        classes: ClassNames | None = None,
        exclude_classes: ClassNames | None = None,
        seed: int = 0,
        skip_small_classes: bool = False,
        identical_apart: bool = True,
    ) -> None:
        self.pool = pool
        self.way, self.shot, self.query = (
            checked_span("way", way, 2),
            checked_span("shot", shot, 1),
            checked_span("query", query, 1),
        )
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed is {seed!r}; expected an integer of at least 0")
        self._take(corruptions)
        self._made_with: dict[str, Any] = {
            "attributes": attributes,
            "domains": domains,
            "mix_domains": mix_domains,
            "classes": classes,
            "exclude_classes": exclude_classes,
            "skip_small_classes": skip_small_classes,
            "identical_apart": identical_apart,
        }
        self._seed = int(seed)
        self._rng = np.random.Generator(np.random.PCG64(seed))

        most = (self.shot[1], self.query[1])
        for count in self._counts:
            most = count.most(*most)
        chosen = positions("attributes", attributes, pool.attributes)
        pictures = pool.pictures if identical_apart else None
        indices = index_classes(
            pool,
            chosen,
            positions("domains", domains, pool.domain_names),
            mix_domains,
            wanted_classes(classes, exclude_classes, chosen, pool),
            *most,
            pictures,
        )
        used = {a: enough_classes(pool, indices[a], self.way, *most) for a in chosen}
        self._scope = Scope(pool, used, self.way, self.shot, self.query, *most, pictures)
        if not skip_small_classes:
            check_small_classes(pool, indices, sum(most))
            check_idle_domains(pool, indices, used, self.way[0])
        for corruption in self.corruptions:
            corruption.check(self._scope)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}={low if low == high else (low, high)}"
            for name, (low, high) in (("way", self.way), ("shot", self.shot), ("query", self.query))
        )
        wrong = f", corruptions=[{', '.join(map(str, self.corruptions))}]" if self.corruptions else ""
        return f"EpisodeSampler({self.pool!r}, {sizes}{wrong}, seed={self._seed})"

    def with_corruptions(self, corruptions: Sequence[CorruptionLike], *, seed_offset: int = 0) -> EpisodeSampler:
        """A new sampler like this one, at the start of its stream, in which other things go wrong.

        Args:
            corruptions: as in the constructor.
            seed_offset: added to the seed.
        """
        shape = (self.way, self.shot, self.query)
        seed = self._seed + seed_offset
        return EpisodeSampler(self.pool, *shape, corruptions=corruptions, seed=seed, **self._made_with)

    def episode(self) -> Episode:
        """The next episode of the stream."""
        return gather(self.pool, [self._draw(self._rng)]).episode(0)

    def sample(self, count: int) -> EpisodeBatch:
        """The next ``count`` episodes of the stream: ``EpisodeBatch.collate`` of them, with one gather of images.

        Raises:
            ValueError: when ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 episode")
        return gather(self.pool, [self._draw(self._rng) for _ in range(count)])

    @overload
    def at(self, number: int) -> Episode: ...
    @overload
    def at(self, number: Sequence[int]) -> EpisodeBatch: ...
    def at(self, number: int | Sequence[int]) -> Episode | EpisodeBatch:
        """Episode number i, or a batch of several: the same for any order, batch size, number of processes and resume.

        What is done to the rows or pixels of supports is drawn last: number i has the same queries as that of a clean
        sampler with the same seed, so that the two can be compared in pairs.

        Args:
            number: at least 0; or a sequence of such, for example ``range(rank, 64, world_size)``.

        Raises:
            ValueError: for no numbers, or one below 0.
        """
        if isinstance(number, int | np.integer):
            return gather(self.pool, [self._draw(self._numbered(int(number)))]).episode(0)
        if not len(number):
            raise ValueError("got no episode numbers; expected at least one")
        return gather(self.pool, [self._draw(self._numbered(int(i))) for i in number])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the generator's state, plain enough for JSON."""
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

    def _take(self, corruptions: Sequence[CorruptionLike]) -> None:
        """Make corruptions and sort them by what they change."""
        self.corruptions = made = make_corruptions(corruptions)
        self._counts = [c for c in made if isinstance(c, CountCorruption)]
        self._choices = [c for c in made if isinstance(c, ChoiceCorruption)]
        self._rows = [c for c in made if isinstance(c, RowCorruption)]
        self._pixels = [c for c in made if isinstance(c, PixelCorruption)]

    def _numbered(self, number: int) -> np.random.Generator:
        if number < 0:
            raise ValueError(f"episode number is {number}; expected at least 0")
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(number,))))

    def _draw(self, rng: np.random.Generator) -> Draw:
        # The order of these draws is what a seed means: a corruption that is not asked for draws nothing.
        attributes = list(self._scope.indices)
        attribute = attributes[rng.integers(len(attributes))]
        way, shot, query = (int(rng.integers(low, high + 1)) for low, high in (self.way, self.shot, self.query))
        indices = [s for s in self._scope.indices[attribute] if len(s.classes) >= way]
        index = indices[rng.integers(len(indices))]
        applied = []
        shots, queries = np.full(way, shot), np.full(way, query)
        for count in self._counts:
            if count.applies(rng):
                applied.append(count.name)
                shots, queries = count.counts(shots, queries, rng)
        selection = None
        if self._choices:
            choice = next((c for c in self._choices if c.applies(rng)), None)
            if choice is not None:
                applied.append(choice.name)
                selection = choice.choose(self._scope, index, shots, rng)
        else:
            rng.random()  # whether to confound: a sampler that can, draws here
        return self._corrupted(draw_images(self._scope, index, shots, queries, selection, rng), index, applied, rng)

    def _corrupted(self, draw: Draw, index: ClassIndex, applied: list[str], rng: np.random.Generator) -> Draw:
        """With what goes wrong with rows and pixels; ``applied`` has the names of what went wrong before."""
        for change in self._rows:
            if change.applies(rng):
                applied.append(change.name)
                draw = change.change(draw, index, self._scope, rng)
        pixels = [(c, int(rng.integers(2**63))) for c in self._pixels if c.applies(rng)]
        if not applied and not pixels:
            return draw
        return replace(draw, corruptions=(*applied, *(c.name for c, _ in pixels)), pixels=tuple(pixels))
