"""ImagePool: decoded images with one or more labellings, the thing that episode samplers draw from.

Readers (glyphs, folders, CSV, any torch Dataset) end here; samplers start here. Images are decoded once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_DIGESTED_AT_ONCE = 4096  # images, so that those of another device are copied in parts


@dataclass(frozen=True, eq=False, repr=False)
class ImagePool:
    """N decoded images.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N, A)`` long: the class of every image under each of A attributes (A = 1 for a folder of classes).
        attributes: A names, e.g. ``("letter", "face", "rotation", "style")`` or ``("class",)``.
        class_names: for every attribute, its class names in the order of the labels.
        domain: ``(N,)`` long, index into ``domain_names``.
        domain_names: names of the domains; a single ``"all"`` where there is only one.

    Raises:
        ValueError: for images that are not uint8 ``(N, C, H, W)`` with N > 0, or labels or domains of another length.

    Example:
        >>> import torch
        >>> images = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).view(4, 1, 8, 8)
        >>> ImagePool(images, torch.tensor([[0], [0], [1], [1]]), ("class",), (("cat", "dog"),), torch.zeros(4).long())
        ImagePool(4 images 1x8x8, class: 2 classes)
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

    def __repr__(self) -> str:
        attributes = (f"{a}: {len(names)} classes" for a, names in zip(self.attributes, self.class_names, strict=True))
        domains = (f"domains: {', '.join(self.domain_names)}",) if len(self.domain_names) > 1 else ()
        size = "x".join(map(str, self.images.shape[1:]))
        return f"ImagePool({', '.join((f'{len(self)} images {size}', *attributes, *domains))})"

    def at(self, rows: Tensor) -> Tensor:
        """Images ``(*rows, C, H, W)`` as float32 in [0, 1]."""
        return self.images[rows].float().div_(255.0)

    def on(self, device: torch.device | str, limit: int | None = None) -> ImagePool:
        """The same pool with its images on a device, so that episodes are gathered there; labels stay on the CPU.

        Args:
            device: where to.
            limit: bytes that the images may take there, beyond which they stay where they are. Default: a quarter of
                the free memory of a GPU; elsewhere there is none.
        """
        device = torch.device(device)
        if limit is None and device.type == "cuda":
            limit = torch.cuda.mem_get_info(device)[0] // 4
        if self.images.device == device or (limit is not None and self.images.nbytes > limit):
            return self
        found = self.pictures  # once, while the images are near
        moved = replace(self, images=self.images.to(device))
        vars(moved)["pictures"] = found
        return moved

    def duplicates(self) -> list[list[int]]:
        """Groups of rows whose pictures are identical to the pixel, each group and the groups in the order of rows.

        Example:
            >>> import torch
            >>> images = torch.tensor([7, 8, 7, 9], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
            >>> pool = ImagePool(images, torch.zeros(4, 1).long(), ("class",), (("cat",),), torch.zeros(4).long())
            >>> pool.duplicates()
            [[0, 2]]
        """
        if self.pictures is None:
            return []
        order = np.argsort(self.pictures, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.pictures[order])) + 1)
        return [group.tolist() for group in groups if len(group) > 1]

    @cached_property
    def pictures(self) -> np.ndarray | None:
        """``(N,)`` int: the first row with the same picture, by content digest; None where no two are identical."""
        first = same_images(self.images).numpy()
        return first if (first != np.arange(len(self))).any() else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and their shape."""
        found = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in self.images.split(_DIGESTED_AT_ONCE):
            found.update(part.cpu().contiguous().numpy().data)
        return found.hexdigest()


def same_images(images: Tensor) -> Tensor:
    """``(N,)`` long: for every image the first one with the same pixels, itself where there is none.

    Args:
        images: ``(N, C, H, W)`` uint8.

    Example:
        >>> same_images(torch.tensor([1, 2, 1], dtype=torch.uint8).view(3, 1, 1, 1)).tolist()
        [0, 1, 0]
    """
    first: dict[bytes, int] = {}
    found = torch.empty(len(images), dtype=torch.long)
    for start in range(0, len(images), _DIGESTED_AT_ONCE):
        part = images[start : start + _DIGESTED_AT_ONCE].cpu().contiguous().flatten(1).numpy()
        for row, pixels in enumerate(part, start):
            found[row] = first.setdefault(hashlib.blake2b(pixels, digest_size=16).digest(), row)
    return found
