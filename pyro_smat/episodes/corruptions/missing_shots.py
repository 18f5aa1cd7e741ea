"""Missing shots: a part of the support is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.episodes.corruptions.corruption import RowCorruption
from pyro_smat.episodes.corruptions.label_noise import noisy_count, spare_shots
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.registry import register


@register("corruption", "missing_shots")
@dataclass(frozen=True)
class MissingShots(RowCorruption):
    """round(p S) random shots of the S are lost; every label keeps at least one.

    Args:
        fraction: p in [0, 1].
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    fraction: float = 0.5

    at_severities = {"fraction": (0.2, 0.35, 0.5, 0.65, 0.8)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction of missing_shots is {self.fraction}; expected a number in [0, 1]")

    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """The draw with fewer supports."""
        lost = spare_shots(draw.support_labels, rng)[: noisy_count(self.fraction, len(draw.support))]
        return replace(
            draw,
            support=np.delete(draw.support, lost),
            support_labels=np.delete(draw.support_labels, lost),
            support_truth=np.delete(draw.support_truth, lost),
        )
