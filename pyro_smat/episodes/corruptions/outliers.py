"""Outliers: some supports are replaced by images that do not belong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pyro_smat.episodes.corruptions.corruption import RowCorruption
from pyro_smat.episodes.corruptions.label_noise import noisy_count, spare_shots
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.labelled import UNKNOWN
from pyro_smat.episodes.scope import Scope
from pyro_smat.registry import register


@register("corruption", "outliers")
@dataclass(frozen=True)
class Outliers(RowCorruption):
    """round(p S) of the S supports become images of classes that the episode has not, or of other domains.

    They keep the label of the shot that they replace; one random shot of each label is exempt. Every outlier is drawn
    from a domain, a class of it and an image of that, each uniformly.

    Args:
        fraction: p in [0, 1).
        of: "class": other classes of the same domain; "domain": any class of another domain.
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    fraction: float = 0.2
    of: Literal["class", "domain"] = "class"

    at_severities = {"fraction": (0.1, 0.2, 0.3, 0.4, 0.5)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction of outliers is {self.fraction}; expected a number in [0, 1)")
        if self.of not in ("class", "domain"):
            raise ValueError(f"of is {self.of!r}; expected 'class' or 'domain'")

    def check(self, scope: Scope) -> None:
        """Refuse a scope in which nothing is foreign to some episode."""
        for group in scope.indices.values():
            if self.of == "domain" and len(group) < 2:
                raise ValueError(
                    f"outliers of other domains need two domains to draw {scope.described(group[0])} from, each an "
                    f"episode's own; found {len(group)} (name more domains, do not mix them, or use of = 'class')"
                )
            for index in group:
                if self.of == "class" and scope.widest(index) == len(index.classes):
                    raise ValueError(
                        f"outliers of other classes need a class that the episode has not; {scope.described(index)} "
                        f"has {len(index.classes)} classes for {scope.widest(index)}-way episodes (lower way, or use "
                        "of = 'domain')"
                    )

    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """The draw with outliers among its supports."""
        chosen = spare_shots(draw.support_labels, rng)[: noisy_count(self.fraction, len(draw.support))]
        own = {int(k): label for label, k in enumerate(draw.classes)}
        if self.of == "class":
            sources = [(index, [k for k in index.classes.tolist() if k not in own])]
        else:
            sources = [(other, other.classes.tolist()) for other in scope.indices[draw.attribute] if other is not index]
        support, truth = draw.support.copy(), draw.support_truth.copy()
        taken = scope.show(np.concatenate([draw.support, draw.query]))
        for shot in chosen.tolist():
            for _ in range(100):
                place, classes = sources[rng.integers(len(sources))]
                k = classes[rng.integers(len(classes))]
                row = int(rng.choice(place.rows[k]))
                if scope.show(row) not in taken:
                    break
            else:
                raise ValueError("no outlier in 100 draws that the episode does not show already; lower the fraction")
            taken = np.append(taken, scope.show(row))
            support[shot], truth[shot] = row, own.get(k, UNKNOWN)
        return replace(draw, support=support, support_truth=truth)
