"""Labelled: images with what is known of them. A support and a set of queries are both this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

UNKNOWN = -1  # a label, route, domain or pool row that nobody knows


@dataclass(frozen=True, init=False, repr=False)
class Labelled:
    """n images of one task, or those of B tasks, padded to the longest.

    Args:
        images: ``([B,] n, C, H, W)`` float in [0, 1]; zeros where masked.
        labels: ``([B,] n)`` long; None where nobody knows them (they become -1), 0 where masked.
        mask: ``([B,] n)`` bool, False where padded; None for all True.
        rows: ``([B,] n)`` long, rows of the image pool; None for -1, not from a pool. Masked: -1.
        features: ``(B, R, n, f)`` under the R frozen sources, or None until
            :class:`~pyro_smat.networks.features.SourceFeatures` has filled them in.

    Example:
        >>> import torch
        >>> Labelled(torch.rand(6, 1, 8, 8), torch.tensor([0, 0, 0, 1, 1, 1])).has_labels
        True
        >>> Labelled(torch.rand(6, 1, 8, 8)).labels.tolist()
        [-1, -1, -1, -1, -1, -1]
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    rows: Tensor
    features: Tensor | None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        features: Tensor | None = None,
    ) -> None:
        def full(value: float | bool) -> Tensor:
            return torch.full(images.shape[:-3], value, device=images.device)

        values = {
            "images": images,
            "labels": full(UNKNOWN) if labels is None else labels,
            "mask": full(True) if mask is None else mask,
            "rows": full(UNKNOWN) if rows is None else rows,
            "features": features,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def collate(cls, parts: Sequence[Labelled]) -> Labelled:
        """Pad and stack those of B tasks, without features."""

        def pad(tensors: list[Tensor], value: float = 0) -> Tensor:
            return pad_sequence(tensors, batch_first=True, padding_value=value)

        return cls(
            pad([p.images for p in parts]),
            pad([p.labels for p in parts]),
            pad([p.mask for p in parts], False),
            pad([p.rows for p in parts], UNKNOWN),
        )

    def __len__(self) -> int:
        """n, of the longest task."""
        return self.labels.shape[-1]

    def __repr__(self) -> str:
        *batch, n = self.labels.shape
        size = "x".join(map(str, self.images.shape[-3:]))
        what = ["labelled" if self.has_labels else "not all labelled" if (self.labels >= 0).any() else "no labels"]
        what += [] if self.features is None else [f"features {tuple(self.features.shape)}"]
        return f"Labelled({''.join(f'{b} x ' for b in batch)}{n} images {size}, {', '.join(what)})"

    @property
    def has_labels(self) -> bool:
        """Whether every image that is not padding has a label."""
        return bool((self.labels[self.mask] != UNKNOWN).all())

    @property
    def counts(self) -> Tensor:
        """How many images are real, ``([B],)``."""
        return self.mask.sum(-1)

    def select(self, index: slice | Tensor) -> Labelled:
        """The images at ``index`` ``(m,)`` of every task, in that order."""
        features = self.features
        return Labelled(
            self.images[..., index, :, :, :],
            self.labels[..., index],
            self.mask[..., index],
            self.rows[..., index],
            None if features is None else features[..., index, :],
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Labelled:
        """The same with a function of every tensor."""
        rest = (self.labels, self.mask, self.rows, self.features)
        return Labelled(function(self.images), *(None if tensor is None else function(tensor) for tensor in rest))


def check_images(images: Tensor, what: str) -> None:
    """Refuse images that no network can use.

    Raises:
        ValueError: when ``images`` is not ``(n, C, H, W)`` floating point with n > 0, or holds NaN or infinite values.
    """
    if images.ndim != 4 or images.shape[0] == 0:
        raise ValueError(
            f"{what} images have shape {tuple(images.shape)}; expected (n, channels, height, width), n > 0"
        )
    if not images.is_floating_point():
        raise ValueError(f"{what} images are {images.dtype}; expected floating point in [0, 1] (divide uint8 by 255)")
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise ValueError(f"{what} images {rows[:8]} hold NaN or infinite values; expected finite pixels in [0, 1]")
