"""Draw: the rows and labels of one episode before any image is touched; many draws become one EpisodeBatch.

The sampler and the corruptions make draws; :func:`gather` is the one place where rows of a pool become a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.labelled import UNKNOWN, Labelled
from pyro_smat.episodes.pool import ImagePool

if TYPE_CHECKING:
    from pyro_smat.episodes.corruptions.corruption import PixelCorruption


@dataclass(frozen=True)
class Draw:
    """One episode as rows of a pool.

    Attributes:
        attribute, domain: what the labels are, and where the images come from (-1: several domains).
        classes: ``(way,)`` class of each label.
        support, query: ``(S,)``, ``(Q,)`` rows.
        support_labels, query_labels: likewise, in [0, way).
        support_truth: ``(S,)`` the label that each image should have, -1 for none of the episode's classes.
        confounded_with: the confounding attribute, else -1.
        corruptions: names of those that were applied.
        pixels: changes of the images that are still to be made, each with the seed of its own generator.
    """

    attribute: int
    domain: int
    classes: np.ndarray
    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    support_truth: np.ndarray
    confounded_with: int = UNKNOWN
    corruptions: tuple[str, ...] = ()
    pixels: tuple[tuple[PixelCorruption, int], ...] = ()

    @property
    def way(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def corrupted_labels(self) -> int:
        """How many support images have a label that is not their class."""
        return int((self.support_labels != self.support_truth).sum())


def gather(pool: ImagePool, draws: Sequence[Draw]) -> EpisodeBatch:
    """The batch that draws describe, with one gather of images, on the pool's device.

    Images whose pixels a corruption changed are no longer those of the pool: their row is -1.
    """
    support = _labelled(pool, [(d.support, d.support_labels) for d in draws])
    query = _labelled(pool, [(d.query, d.query_labels) for d in draws])
    for b, draw in enumerate(draws):
        for corruption, seed in draw.pixels:
            rng = np.random.Generator(np.random.PCG64(seed))
            _change(support, b, len(draw.support), corruption, draw.way, "support", rng)
            if corruption.queries:
                _change(query, b, len(draw.query), corruption, draw.way, "query", rng)
    device = pool.images.device
    numbers = [(d.way, _route(pool, d), d.domain, d.corrupted_labels, d.confounded_with) for d in draws]
    way, route, domain, corrupted_labels, confounded_with = (
        torch.tensor(numbers).mT.contiguous().to(device, non_blocking=True)
    )
    names = [pool.class_names[d.attribute] for d in draws]
    batch = EpisodeBatch(
        support,
        query,
        way,
        route=route,
        domain=domain,
        corrupted_labels=corrupted_labels,
        confounded_with=confounded_with,
        class_names=tuple(tuple(named[k] for k in d.classes) for d, named in zip(draws, names, strict=True)),
        corruptions=tuple(d.corruptions for d in draws),
    )
    vars(batch)["max_way"] = max(d.way for d in draws)  # a device would be waited for
    return batch


def _change(
    part: Labelled, b: int, n: int, corruption: PixelCorruption, way: int, what: str, rng: np.random.Generator
) -> None:
    """Change the first n images of task b in place."""
    images, labels = part.images[b, :n], part.labels[b, :n]
    changed = corruption.change(images.cpu().numpy(), labels.cpu().numpy(), way, rng, query=what == "query")
    images.copy_(torch.from_numpy(np.clip(changed, 0, 1).astype(np.float32)))
    part.rows[b, :n] = UNKNOWN


def _route(pool: ImagePool, draw: Draw) -> int:
    if len(pool.attributes) > 1:
        return draw.attribute
    return draw.domain if len(pool.domain_names) > 1 else UNKNOWN


def _labelled(pool: ImagePool, parts: list[tuple[np.ndarray, np.ndarray]]) -> Labelled:
    """Images of rows with labels, padded to the longest; a padded row is -1."""
    longest = max(len(rows) for rows, _ in parts)
    table = np.zeros((2, len(parts), longest), dtype=np.int64)
    table[0] = UNKNOWN
    for b, part in enumerate(parts):
        table[:, b, : len(part[0])] = part
    rows, labels = torch.from_numpy(table).to(pool.images.device, non_blocking=True)
    mask = rows >= 0
    images = pool.at(rows.clamp_min(0))
    if any(len(rows) < longest for rows, _ in parts):
        images.masked_fill_(~mask.view(*mask.shape, 1, 1, 1), 0)
    return Labelled(images, labels, mask, rows)
