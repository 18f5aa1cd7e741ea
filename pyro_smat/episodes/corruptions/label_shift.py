"""Label shift: classes are not equally frequent among the queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.episodes.corruptions.class_imbalance import scaled
from pyro_smat.episodes.corruptions.corruption import CountCorruption
from pyro_smat.registry import register


@register("corruption", "label_shift")
@dataclass(frozen=True)
class LabelShift(CountCorruption):
    """Class k has max(1, round(query u_k)) queries, u_k uniform in [1 - b, 1 + b]; the support stays balanced.

    Args:
        shift: b in [0, 1).
        probability: share of the episodes that it happens to, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    shift: float = 0.5

    at_severities = {"shift": (0.2, 0.4, 0.6, 0.8, 0.95)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shift < 1:
            raise ValueError(f"shift is {self.shift}; expected a number in [0, 1), 0 for equally many queries a class")

    def counts(self, shots: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Shots as they are; queries of each class, spread."""
        return shots, scaled(queries, rng.uniform(1 - self.shift, 1 + self.shift, size=len(queries)))

    def most(self, shots: int, queries: int) -> tuple[int, int]:
        """round(query (1 + b)) queries."""
        return shots, int(scaled(np.array(queries), np.array(1 + self.shift)))
