"""The same image more than once in a pool: reported when it is read, and known to whoever draws episodes.

An image that is in the support of a task and among its queries flatters every number measured there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_smat.episodes.pool import same_images

_NAMED = 3


class DuplicateWarning(UserWarning):
    """Images that are in a pool more than once."""


def warn_of_duplicates(where: str, images: Tensor, labels: Tensor, name: Callable[[int], str]) -> None:
    """One warning of the images that are there more than once, and of those among them with two labels.

    Args:
        where: they were read, for the message.
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` long.
        name: of an image, by its row.
    """
    first = same_images(images)
    again = (first != torch.arange(len(first))).nonzero().flatten()
    if not len(again):
        return
    pairs = [f"{name(row)} is {name(int(first[row]))}" for row in again[:_NAMED].tolist()]
    clashes = int((labels[again] != labels[first[again]]).sum())
    label = f"; {clashes} of them have another label than the first" if clashes else ""
    more = ", ..." if len(again) > _NAMED else ""
    warnings.warn(
        f"{where}: {len(again)} of {len(first)} images are there already, with the same pixels: {', '.join(pairs)}"
        f"{more}{label}. In support and queries of one task they flatter its numbers: remove them",
        DuplicateWarning,
        stacklevel=3,
    )
