"""EpisodeBatch: B episodes, padded and masked; what flows from samplers and readers into guides and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.labelled import UNKNOWN, Labelled


@dataclass(frozen=True, init=False)
class EpisodeBatch:
    """B episodes, padded to the largest support, query set and way.

    Args:
        support: images ``(B, S, C, H, W)``, labels, mask and rows ``(B, S)``.
        query: likewise with Q; None for none.
        way: ``(B,)`` long.
        route, domain, corrupted_labels, confounded_with: ``(B,)`` long, see :class:`Episode`; None where unknown.

    Example:
        >>> import torch
        >>> support = Labelled(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
        >>> EpisodeBatch.collate([Episode(support), Episode(support)]).support.images.shape
        torch.Size([2, 4, 1, 8, 8])
    """

    support: Labelled
    query: Labelled
    way: Tensor
    route: Tensor
    domain: Tensor
    corrupted_labels: Tensor
    confounded_with: Tensor

    def __init__(
        self,
        support: Labelled,
        query: Labelled | None,
        way: Tensor,
        *,
        route: Tensor | None = None,
        domain: Tensor | None = None,
        corrupted_labels: Tensor | None = None,
        confounded_with: Tensor | None = None,
    ) -> None:
        unknown = torch.full_like(way, UNKNOWN)
        values = {
            "support": support,
            "query": Labelled(support.images[:, :0]) if query is None else query,
            "way": way,
            "route": unknown if route is None else route,
            "domain": unknown if domain is None else domain,
            "corrupted_labels": torch.zeros_like(way) if corrupted_labels is None else corrupted_labels,
            "confounded_with": unknown if confounded_with is None else confounded_with,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def collate(cls, episodes: Sequence[Episode]) -> EpisodeBatch:
        """Pad and stack episodes.

        Raises:
            ValueError: for no episodes, or when image sizes differ between episodes.
        """
        if not episodes:
            raise ValueError("got no episodes; expected at least one")
        sizes = sorted({tuple(e.support.images.shape[1:]) for e in episodes})
        if len(sizes) > 1:
            raise ValueError(f"episodes have images of sizes {sizes}; expected one size")
        numbers = {
            name: torch.tensor([getattr(e, name) for e in episodes], dtype=torch.long)
            for name in ("way", "route", "domain", "corrupted_labels", "confounded_with")
        }
        return cls(
            Labelled.collate([e.support for e in episodes]), Labelled.collate([e.query for e in episodes]), **numbers
        )

    def __len__(self) -> int:
        """B."""
        return len(self.way)

    @property
    def max_way(self) -> int:
        """W, the largest way of the batch."""
        return int(self.way.max())

    @property
    def class_mask(self) -> Tensor:
        """``(B, W)`` bool, True for the classes that an episode has."""
        return torch.arange(self.max_way, device=self.way.device) < self.way.unsqueeze(-1)

    def with_features(self, features: Tensor) -> EpisodeBatch:
        """The same batch with ``support.features`` ``(B, R, S, f)``."""
        return replace(self, support=replace(self.support, features=features))

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> EpisodeBatch:
        """A slice of the episodes (padding stays as it is)."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, function: Callable[[Tensor], Tensor]) -> EpisodeBatch:
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: v.map(function) if isinstance(v, Labelled) else function(v) for k, v in parts.items()}
        )
