"""ImagePool: decoded images with one or more labellings, the thing that episode samplers draw from.

Readers (glyphs, folders, CSV, any torch Dataset) end here; samplers start here. Images are decoded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImagePool:
    """N decoded images.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N, A)`` long: the class of every image under each of A attributes (A = 1 for a folder of classes).
        attributes: A names, e.g. ``("letter", "face", "rotation", "style")`` or ``("class",)``.
        class_names: for every attribute, its class names in the order of the labels.
        domain: ``(N,)`` long, index into ``domain_names``.
        domain_names: names of the domains; a single ``"all"`` where there is only one.
    """

    images: Tensor
    labels: Tensor
    attributes: tuple[str, ...]
    class_names: tuple[tuple[str, ...], ...]
    domain: Tensor
    domain_names: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        n = self.images.shape[0]
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or n == 0:
            raise ValueError(
                f"images are {self.images.dtype} {tuple(self.images.shape)}; expected uint8 (N, C, H, W) with N > 0"
            )
        if self.labels.shape != (n, len(self.attributes)):
            raise ValueError(
                f"labels have shape {tuple(self.labels.shape)}; expected ({n}, {len(self.attributes)}): "
                f"one column for each attribute of {self.attributes}"
            )
        if self.domain.shape != (n,):
            raise ValueError(f"domain has shape {tuple(self.domain.shape)}; expected ({n},)")

    def __len__(self) -> int:
        return self.images.shape[0]

    def at(self, rows: Tensor) -> Tensor:
        """Images ``(*rows, C, H, W)`` as float32 in [0, 1]."""
        return self.images[rows].float() / 255.0
