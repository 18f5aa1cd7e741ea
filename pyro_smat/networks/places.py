"""Places: where the images of a batch stand in the pool that they were drawn from, found once for each of its parts.

Features of a pool are looked up several times a step, under sources, routings and for regret; a device that is asked
whether an image is not the pool's is waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Placed(NamedTuple):
    """Where the images of a part of a batch stand.

    Attributes:
        rows: ``(B, n)`` of the pool, 0 where there is none.
        own: ``(B, n)`` bool, images that are not the pool's; None where all are.
        highest: of the rows.
        mask, changes: the mask that this was found of, and how often rows and mask had been changed.
    """

    rows: Tensor
    own: Tensor | None
    highest: int
    mask: Tensor | None
    changes: tuple[int | None, int | None]


class Places:
    """What was found of the rows that are still in use.

    Example:
        >>> rows, mask = torch.tensor([[4, -1, -1]]), torch.tensor([[True, True, False]])
        >>> places = Places()
        >>> placed = places.of(torch.zeros(1, 3, 1, 8, 8), rows, mask)
        >>> placed.rows, placed.own, placed.highest
        (tensor([[4, 0, 0]]), tensor([[False,  True, False]]), 4)
    """

    def __init__(self) -> None:
        self._found: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, images: Tensor, rows: Tensor, mask: Tensor | None) -> Placed:
        """Where images ``(B, n, C, H, W)`` stand that are the pool's ``rows`` ``(B, n)``, -1 where they are not.

        Padding is where ``mask`` ``(B, n)`` is False; without a mask, what is black and has row -1.
        """
        changes = changes_of(rows), None if mask is None else changes_of(mask)
        known = self._found.get(rows)
        same = known is not None and mask is not None and known.mask is mask and known.changes == changes
        if same and None not in changes:  # what is not counted may have changed
            return known
        real = images.flatten(2).any(-1) if mask is None else mask
        lowest, highest = torch.stack(rows.masked_fill(~real, 0).aminmax()).tolist() if rows.numel() else (0, 0)
        found = Placed(rows.clamp(min=0), (rows < 0) & real if lowest < 0 else None, highest, mask, changes)
        if mask is not None:  # without, it also depends on the images
            self._found[rows] = found
        return found


def changes_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place, where PyTorch counts that."""
    return None if tensor.is_inference() else tensor._version
