"""Episodes: a support set S and queries Q, alone or as a padded, masked batch.

This is what flows from the samplers and file readers into guides and models. Images are float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

UNKNOWN = -1  # route, domain or pool row of an image that did not come from a pool


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


@dataclass(frozen=True)
class Episode:
    """One task.

    Attributes:
        support_images: ``(S, C, H, W)`` float.
        support_labels: ``(S,)`` long in [0, way). Every class has at least one shot.
        query_images: ``(Q, C, H, W)`` float.
        query_labels: ``(Q,)`` long in [0, way).
        way: number of classes.
        class_names: one name a class, or empty.
        support_index, query_index: rows of the image pool, ``(S,)`` and ``(Q,)``, or None when there is no pool.
        route: the true route (an attribute or a domain) where it is known, else -1.
        domain: index of the domain, else -1.
        corrupted_labels: how many support labels were changed by label noise.
        confounded_with: the attribute that confounds the support, else -1.
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    way: int
    class_names: tuple[str, ...] = ()
    support_index: Tensor | None = None
    query_index: Tensor | None = None
    route: int = UNKNOWN
    domain: int = UNKNOWN
    corrupted_labels: int = 0
    confounded_with: int = UNKNOWN

    def __post_init__(self) -> None:
        for what, images, labels in (
            ("support", self.support_images, self.support_labels),
            ("query", self.query_images, self.query_labels),
        ):
            check_images(images, what)
            if labels.shape != images.shape[:1]:
                raise ValueError(f"{what} labels have shape {tuple(labels.shape)}; expected ({images.shape[0]},)")
            if labels.dtype != torch.long or labels.min() < 0 or labels.max() >= self.way:
                raise ValueError(
                    f"{what} labels are {labels.dtype} from {int(labels.min())} to {int(labels.max())}; "
                    f"expected torch.long in [0, {self.way})"
                )
        if self.support_images.shape[1:] != self.query_images.shape[1:]:
            raise ValueError(
                f"support images are {tuple(self.support_images.shape[1:])} and query images "
                f"{tuple(self.query_images.shape[1:])}; expected one image size"
            )
        missing = sorted(set(range(self.way)) - set(self.support_labels.tolist()))
        if missing:
            names = [self.class_names[k] if self.class_names else str(k) for k in missing]
            raise ValueError(
                f"classes {names} have no support image; expected at least one for each of {self.way} classes"
            )


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes, padded to the largest support, query set and way, with masks.

    Attributes:
        support_images: ``(B, S, C, H, W)``; zeros where ``support_mask`` is False.
        support_labels: ``(B, S)`` long; 0 where masked.
        support_mask: ``(B, S)`` bool.
        query_images, query_labels, query_mask: likewise with Q.
        way: ``(B,)`` long.
        support_index, query_index: ``(B, S)`` and ``(B, Q)`` rows of the pool, -1 where unknown or masked.
        route, domain, corrupted_labels, confounded_with: ``(B,)`` long, see :class:`Episode`.
        support_features: ``(B, R, S, f)`` features of the support under the R frozen sources, or None until
            :class:`pyro_smat.networks.features.SourceFeatures` has filled them in.
    """

    support_images: Tensor
    support_labels: Tensor
    support_mask: Tensor
    query_images: Tensor
    query_labels: Tensor
    query_mask: Tensor
    way: Tensor
    support_index: Tensor
    query_index: Tensor
    route: Tensor
    domain: Tensor
    corrupted_labels: Tensor
    confounded_with: Tensor
    support_features: Tensor | None = None

    @classmethod
    def collate(cls, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Pad and stack episodes.

        Raises:
            ValueError: for no episodes, or when image sizes differ between episodes.
        """
        if not episodes:
            raise ValueError("got no episodes; expected at least one")
        sizes = sorted({tuple(e.support_images.shape[1:]) for e in episodes})
        if len(sizes) > 1:
            raise ValueError(f"episodes have images of sizes {sizes}; expected one size")

        def pad(tensors: list[Tensor], value: float = 0) -> Tensor:
            return pad_sequence(tensors, batch_first=True, padding_value=value)

        def index(rows: Tensor | None, labels: Tensor) -> Tensor:
            return torch.full_like(labels, UNKNOWN) if rows is None else rows

        def numbers(name: str) -> Tensor:
            return torch.tensor([getattr(e, name) for e in episodes], dtype=torch.long)

        return cls(
            support_images=pad([e.support_images for e in episodes]),
            support_labels=pad([e.support_labels for e in episodes]),
            support_mask=pad([torch.ones_like(e.support_labels, dtype=torch.bool) for e in episodes], False),
            query_images=pad([e.query_images for e in episodes]),
            query_labels=pad([e.query_labels for e in episodes]),
            query_mask=pad([torch.ones_like(e.query_labels, dtype=torch.bool) for e in episodes], False),
            way=numbers("way"),
            support_index=pad([index(e.support_index, e.support_labels) for e in episodes], UNKNOWN),
            query_index=pad([index(e.query_index, e.query_labels) for e in episodes], UNKNOWN),
            route=numbers("route"),
            domain=numbers("domain"),
            corrupted_labels=numbers("corrupted_labels"),
            confounded_with=numbers("confounded_with"),
        )

    def __len__(self) -> int:
        return self.support_images.shape[0]

    @property
    def max_way(self) -> int:
        """W, the largest way of the batch."""
        return int(self.way.max())

    @property
    def class_mask(self) -> Tensor:
        """``(B, W)`` bool, True for the classes that an episode has."""
        return torch.arange(self.max_way, device=self.way.device) < self.way.unsqueeze(-1)

    def with_features(self, support_features: Tensor) -> EpisodeBatch:
        """The same batch with ``support_features`` ``(B, R, S, f)``."""
        return replace(self, support_features=support_features)

    def _map(self, function: Callable[[Tensor], Tensor]) -> EpisodeBatch:
        tensors: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> EpisodeBatch:
        """A slice of the episodes (padding stays as it is)."""
        return self._map(lambda tensor: tensor[rows])
