"""Episode: one task, a support set S and queries Q."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_smat.episodes.labelled import UNKNOWN, Labelled, check_images


@dataclass(frozen=True, init=False, repr=False)
class Episode:
    """One task.

    Args:
        support: S images with labels in [0, way); every class has at least one shot.
        query: Q images of the same size, with or without labels; None for none.
        way: number of classes; None takes the largest support label + 1.
        class_names: one name a class, or empty.
        route: the true route (an attribute or a domain) where it is known, else -1.
        domain: index of the domain, else -1.
        corrupted_labels: how many support images have a label that is not their class.
        confounded_with: the attribute that confounds the support, else -1.
        corruptions: names of the corruptions that were applied.

    Raises:
        ValueError: for images that no network can use, or labels that are not one long in [0, way) an image.

    Example:
        >>> import torch
        >>> Episode(Labelled(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])))
        Episode(2-way, 4 support, no query, 1x8x8)
    """

    support: Labelled
    query: Labelled
    way: int
    class_names: tuple[str, ...]
    route: int
    domain: int
    corrupted_labels: int
    confounded_with: int
    corruptions: tuple[str, ...]

    def __init__(
        self,
        support: Labelled,
        query: Labelled | None = None,
        *,
        way: int | None = None,
        class_names: tuple[str, ...] = (),
        route: int = UNKNOWN,
        domain: int = UNKNOWN,
        corrupted_labels: int = 0,
        confounded_with: int = UNKNOWN,
        corruptions: tuple[str, ...] = (),
    ) -> None:
        values = {
            "support": support,
            "query": Labelled(support.images[:0]) if query is None else query,
            "way": int(support.labels.max()) + 1 if way is None else way,
            "class_names": class_names,
            "route": route,
            "domain": domain,
            "corrupted_labels": corrupted_labels,
            "confounded_with": confounded_with,
            "corruptions": corruptions,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check(support, "support")
        if len(self.query):
            self._check(self.query, "query")
        if support.images.shape[1:] != self.query.images.shape[1:]:
            raise ValueError(
                f"support images are {tuple(support.images.shape[1:])} and query images "
                f"{tuple(self.query.images.shape[1:])}; expected one image size"
            )
        missing = sorted(set(range(self.way)) - set(support.labels.tolist()))
        if missing:
            names = [class_names[k] if class_names else str(k) for k in missing]
            raise ValueError(
                f"classes {names} have no support image; expected at least one for each of {self.way} classes"
            )

    def __repr__(self) -> str:
        size = "x".join(map(str, self.support.images.shape[1:]))
        query = f"{len(self.query) or 'no'} query"
        return f"Episode({self.way}-way, {len(self.support)} support, {query}, {size})"

    def _check(self, part: Labelled, what: str) -> None:
        check_images(part.images, what)
        labels = part.labels
        if labels.shape != part.images.shape[:1]:
            raise ValueError(f"{what} labels have shape {tuple(labels.shape)}; expected ({part.images.shape[0]},)")
        unlabelled = what == "query" and labels.dtype == torch.long and bool((labels == UNKNOWN).all())
        if not unlabelled and (labels.dtype != torch.long or labels.min() < 0 or labels.max() >= self.way):
            raise ValueError(
                f"{what} labels are {labels.dtype} from {labels.min().item()} to {labels.max().item()}; "
                f"expected torch.long in [0, {self.way})"
            )
