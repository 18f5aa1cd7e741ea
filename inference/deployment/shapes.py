"""Tasks of one shape: supports with as many shots and classes, which need no padding to be one batch."""

from __future__ import annotations

from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled


def by_shape(batch: EpisodeBatch) -> list[list[int]]:
    """The places of the tasks of each shape, in the order of their first appearance.

    Example:
        >>> import torch
        >>> from pyro_smat import Episode, Labelled
        >>> small, large = (Labelled(torch.rand(n, 1, 8, 8), torch.arange(n) % 2) for n in (2, 4))
        >>> by_shape(EpisodeBatch.collate([Episode(small), Episode(large), Episode(small)]))
        [[0, 2], [1]]
    """
    found: dict[tuple[int, int], list[int]] = {}
    for place, shape in enumerate(zip(batch.support.counts.tolist(), batch.way.tolist(), strict=True)):
        found.setdefault(shape, []).append(place)
    return list(found.values())


def unpadded(batch: EpisodeBatch, tasks: list[int]) -> EpisodeBatch:
    """Supports of one shape as a batch of their own, without padding, queries or anything that adapting must not see.

    Args:
        batch: with support features ``(B, R, S, f)`` or without.
        tasks: their places.
    """
    part = batch if tasks == list(range(len(batch))) else batch[tasks]
    support, mask = part.support, part.support.mask
    if not mask.all():
        known = support.features
        support = Labelled(
            _real(support.images, mask),
            _real(support.labels, mask),
            rows=_real(support.rows, mask),
            features=None if known is None else _real(known.transpose(1, 2), mask).transpose(1, 2),
        )
    return EpisodeBatch(support, None, part.way, class_names=part.class_names)


def _real(tensor: Tensor, mask: Tensor) -> Tensor:
    """``(B, n, ...)`` of ``(B, S, ...)``, where all rows of the mask ``(B, S)`` hide as many."""
    return tensor[mask].unflatten(0, (len(mask), -1))
