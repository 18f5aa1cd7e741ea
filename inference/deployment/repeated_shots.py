"""Shots that a support holds more than once: each counts once, as whoever leaves one out must not see its copy.

What a support says of itself (support losses, how far labels agree, the predicted share of wrong answers) is measured
on shots that are left out in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable

import torch
from torch import Tensor

from pyro_smat.episodes.pool import same_images
from pyro_smat.episodes.readers.duplicates import DuplicateWarning


def without_repeats(images: Tensor, labels: list[Hashable], *, stacklevel: int = 2) -> tuple[Tensor, list[Hashable]]:
    """The support without shots that repeat an earlier one, the same pixels with the same label.

    A copy with another label stays: it says that one of the two labels is wrong.

    Args:
        images: ``(S, C, H, W)``.
        labels: S of them.
        stacklevel: of the warning.

    Warns:
        DuplicateWarning: where there are any.

    Example:
        >>> images = torch.arange(3.0).view(3, 1, 1, 1)[[0, 1, 2, 1, 1]]
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     kept, labels = without_repeats(images, ["a", "b", "a", "b", "a"])
        >>> kept.flatten().tolist(), labels
        ([0.0, 1.0, 2.0, 1.0], ['a', 'b', 'a', 'a'])
    """
    first = same_images(images).tolist()
    if first == list(range(len(labels))):
        return images, labels
    earliest: dict[tuple[int, Hashable], int] = {}
    kept = [i for i, shot in enumerate(zip(first, labels, strict=True)) if earliest.setdefault(shot, i) == i]
    if len(kept) == len(labels):
        return images, labels
    warnings.warn(
        f"{len(labels) - len(kept)} of {len(labels)} shots repeat others, with the same pixels and label: each counts "
        "once, since a copy says nothing new and would hide how uncertain the task is",
        DuplicateWarning,
        stacklevel=stacklevel,
    )
    return images[torch.tensor(kept)], [labels[i] for i in kept]
