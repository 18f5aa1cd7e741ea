"""EpisodeBatch: B episodes, padded and masked; what flows from samplers and readers into guides and models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.known import KnownFeatures
from pyro_smat.episodes.labelled import UNKNOWN, Labelled


@dataclass(frozen=True, init=False, repr=False)
class EpisodeBatch:
    """B episodes, padded to the largest support, query set and way.

    Args:
        support: images ``(B, S, C, H, W)``, labels, mask and rows ``(B, S)``.
        query: likewise with Q; None for none.
        way: ``(B,)`` long.
        route, domain, corrupted_labels, confounded_with: ``(B,)`` long, see :class:`Episode`; None where unknown.
        class_names, corruptions: B tuples of names; None where unknown.
        known: features of the pool's images, looked up by models in place of running networks; None for none.

    Example:
        >>> import torch
        >>> support = Labelled(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
        >>> batch = EpisodeBatch.collate([Episode(support), Episode(support), Episode(support)])
        >>> batch
        EpisodeBatch(3 episodes, 2-way, 4 support, no query, 1x8x8)
        >>> batch[[0, 2]]
        EpisodeBatch(2 episodes, 2-way, 4 support, no query, 1x8x8)
    """

    support: Labelled
    query: Labelled
    way: Tensor
    route: Tensor
    domain: Tensor
    corrupted_labels: Tensor
    confounded_with: Tensor
    class_names: tuple[tuple[str, ...], ...]
    corruptions: tuple[tuple[str, ...], ...]
    known: KnownFeatures | None

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
        class_names: tuple[tuple[str, ...], ...] | None = None,
        corruptions: tuple[tuple[str, ...], ...] | None = None,
        known: KnownFeatures | None = None,
    ) -> None:
        values = {
            "support": support,
            "query": Labelled(support.images[:, :0]) if query is None else query,
            "way": way,
            "route": torch.full_like(way, UNKNOWN) if route is None else route,
            "domain": torch.full_like(way, UNKNOWN) if domain is None else domain,
            "corrupted_labels": torch.zeros_like(way) if corrupted_labels is None else corrupted_labels,
            "confounded_with": torch.full_like(way, UNKNOWN) if confounded_with is None else confounded_with,
            "class_names": ((),) * len(way) if class_names is None else class_names,
            "corruptions": ((),) * len(way) if corruptions is None else corruptions,
            "known": known,
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
        numbers: dict[str, Any] = {
            name: torch.tensor([getattr(e, name) for e in episodes], dtype=torch.long)
            for name in ("way", "route", "domain", "corrupted_labels", "confounded_with")
        }
        return cls(
            Labelled.collate([e.support for e in episodes]),
            Labelled.collate([e.query for e in episodes]),
            class_names=tuple(e.class_names for e in episodes),
            corruptions=tuple(e.corruptions for e in episodes),
            **numbers,
        )

    def __len__(self) -> int:
        """B."""
        return len(self.way)

    @cached_property
    def max_way(self) -> int:
        """W, the largest way of the batch."""
        return int(self.way.max()) if len(self) else 0

    @cached_property
    def class_mask(self) -> Tensor:
        """``(B, W)`` bool, True for the classes that an episode has."""
        return torch.arange(self.max_way, device=self.way.device) < self.way.unsqueeze(-1)

    def with_features(self, features: Tensor, known: KnownFeatures | None = None) -> EpisodeBatch:
        """The same batch with ``support.features`` ``(B, R, S, f)``, and ``known`` features of all images."""
        found = replace(self, support=replace(self.support, features=features), known=known)
        vars(found).update(max_way=self.max_way, class_mask=self.class_mask)
        return found

    def __repr__(self) -> str:
        size = "x".join(map(str, self.support.images.shape[2:]))
        ways, support, query = (_span(t) for t in (self.way, self.support.counts, self.query.counts))
        query = "no" if query == "0" else query
        return f"EpisodeBatch({len(self)} episodes, {ways}-way, {support} support, {query} query, {size})"

    def episode(self, i: int) -> Episode:
        """Episode i without its padding.

        Raises:
            IndexError: when i is not in [-B, B).
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"episode {i} of a batch of {len(self)}; expected a number from 0 to {len(self) - 1}")
        return Episode(
            *(
                Labelled(*(t[i][part.mask[i]] for t in (part.images, part.labels, part.mask, part.rows)))
                for part in (self.support, self.query)
            ),
            way=int(self.way[i]),
            class_names=self.class_names[i],
            route=int(self.route[i]),
            domain=int(self.domain[i]),
            corrupted_labels=int(self.corrupted_labels[i]),
            confounded_with=int(self.confounded_with[i]),
            corruptions=self.corruptions[i],
        )

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same batch on another device."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True), lambda names: names)
        vars(moved)["max_way"] = self.max_way  # found while it is near: a device would be waited for
        return moved

    def __getitem__(self, episodes: slice | Tensor | Sequence[int] | Sequence[bool]) -> EpisodeBatch:
        """Some of the episodes; padding stays as it is.

        Args:
            episodes: a slice, a list of numbers, or a tensor of numbers ``(m,)`` or of bool ``(B,)``.

        Raises:
            TypeError: for a single number; :meth:`episode` gives one episode.
            IndexError: for a number out of range, or a bool mask of another length.
        """
        if isinstance(episodes, slice):
            return self._map(lambda tensor: tensor[episodes], lambda names: names[episodes])
        if isinstance(episodes, int) or (isinstance(episodes, Tensor) and episodes.ndim != 1):
            raise TypeError(
                f"a batch is indexed by a slice, a list or a tensor (m,); found {episodes!r}. "
                "batch.episode(i) is one episode"
            )
        numbers = torch.as_tensor(episodes, device="cpu")
        index = torch.arange(len(self))[numbers if len(numbers) else numbers.long()]
        chosen = index.tolist()
        return self._map(lambda tensor: tensor[index.to(tensor.device)], lambda names: tuple(names[i] for i in chosen))

    def _map(self, function: Callable[[Tensor], Tensor], of_names: Callable[[_Names], _Names]) -> EpisodeBatch:
        def mapped(value: Any) -> Any:
            if isinstance(value, Labelled):
                return value.map(function)
            if isinstance(value, tuple):
                return of_names(value)
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: mapped(getattr(self, f.name)) for f in fields(self)})


_Names = tuple[tuple[str, ...], ...]


def _span(numbers: Tensor) -> str:
    low, high = (int(n) for n in numbers.aminmax()) if len(numbers) else (0, 0)
    return str(low) if low == high else f"{low} to {high}"
