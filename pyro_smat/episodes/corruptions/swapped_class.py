"""Swapped classes: some classes of the support trade their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.episodes.corruptions.corruption import RowCorruption
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.registry import register


@register("corruption", "swapped_class")
@dataclass(frozen=True)
class SwappedClass(RowCorruption):
    """Random classes trade the labels of all their shots, in a circle; the queries keep the true labels.

    Args:
        classes: how many, at least 2; all of an episode that has fewer.
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    classes: int = 2

    at_severities = {"classes": (2, 3, 4, 5, 6)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise ValueError(f"classes of swapped_class is {self.classes}; expected at least 2, to trade labels")

    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """The draw with swapped support labels."""
        circle = rng.choice(draw.way, min(self.classes, draw.way), replace=False)
        label = np.arange(draw.way)
        label[circle] = np.roll(circle, 1)
        return replace(draw, support_labels=label[draw.support_labels])
