"""Drawn: episodes that are drawn once for everything that is compared, or trained, on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings, evaluate
from pyro_smat.models import RoutedModel
from pyro_smat.networks.features import SourceFeatures

AT_ONCE = 64  # episodes that are evaluated together: small steps wait for the device most of the time


@dataclass(frozen=True)
class Drawn:
    """Episodes that were drawn, to be drawn again and again: a stream of the same batches for every method.

    Attributes:
        batches: of `AT_ONCE` episodes, the last may be smaller.
        features: of their pool.
    """

    batches: Sequence[EpisodeBatch]
    features: SourceFeatures

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    @property
    def groups(self) -> tuple[str, ...]:
        """What the numbers of the episodes' domains mean."""
        return self.features.pool.domain_names if self.features.pool is not None else ()

    def under(self, features: SourceFeatures) -> Drawn:
        """The same episodes as other sources see them."""
        return Drawn([features.attach(batch) for batch in self.batches], features)

    def evaluate(
        self, model: RoutedModel, guide: Any, settings: EvaluationSettings, rule: Any = "posterior_predictive"
    ) -> Evaluation:
        """A pair on these episodes, deployed by a decision rule."""
        stream, device = Again(list(self.batches)), self.features.basis.device
        return evaluate(
            model,
            guide,
            stream,
            self.features,
            deployment=Deployment(rule=rule),
            settings=settings,
            episodes=len(self),
            batch_size=AT_ONCE,
            device=device,
        )


@dataclass(frozen=True)
class Again:
    """A stream that gives batches in the order and sizes in which they are kept."""

    left: list[EpisodeBatch]

    def sample(self, count: int) -> EpisodeBatch:
        batch = self.left.pop(0)
        assert len(batch) == count
        return batch


def drawn_from(features: SourceFeatures, batches: Sequence[EpisodeBatch]) -> Drawn:
    """Episodes of a pool; those with altered pixels get a pool of their own, so that every image is embedded once.

    Altered images are rounded to 8 bits, as files of images are.
    """
    if not any((part.mask & (part.rows < 0)).any() for batch in batches for part in (batch.support, batch.query)):
        return Drawn([features.attach(batch) for batch in batches], features)
    images: list[Tensor] = []

    def numbered(part: Labelled) -> Labelled:
        start = sum(map(len, images))
        images.append((255 * part.images[part.mask]).round().byte())
        rows = torch.full_like(part.rows, -1)
        rows[part.mask] = torch.arange(start, start + len(images[-1]), device=rows.device)
        return replace(part, rows=rows)

    own = [replace(batch, support=numbered(batch.support), query=numbered(batch.query)) for batch in batches]
    assert features.pool is not None
    nothing = torch.zeros(sum(map(len, images)), dtype=torch.long)
    names = features.pool.domain_names
    pool = ImagePool(torch.cat(images), nothing.unsqueeze(1), ("class",), (("any",),), nothing, names)
    known = features.over(pool)
    return Drawn([known.attach(batch) for batch in own], known)


def without_pixels(batch: EpisodeBatch) -> EpisodeBatch:
    """NaN in the place of every pixel, and padding black; they take no memory."""

    def blank(part: Labelled) -> Labelled:
        pixels = torch.where(part.mask, math.nan, 0.0).view(*part.mask.shape, 1, 1, 1)
        return replace(part, images=pixels.expand(part.images.shape))

    return replace(batch, support=blank(batch.support), query=blank(batch.query))
