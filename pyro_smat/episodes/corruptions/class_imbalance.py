"""Class imbalance: classes have different numbers of shots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.episodes.corruptions.corruption import CountCorruption
from pyro_smat.registry import register


@register("corruption", "class_imbalance")
@dataclass(frozen=True)
class ClassImbalance(CountCorruption):
    """Class k has max(1, round(shot u_k)) shots, u_k uniform in [1 - b, 1 + b].

    Args:
        imbalance: b in [0, 1).
        probability: share of the episodes that are imbalanced, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    imbalance: float = 0.5

    at_severities = {"imbalance": (0.2, 0.4, 0.6, 0.8, 0.95)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.imbalance < 1:
            raise ValueError(
                f"imbalance is {self.imbalance}; expected a number in [0, 1), 0 for equally many shots a class"
            )

    def applies(self, rng: np.random.Generator) -> bool:
        """Whether it happens to this episode."""
        return self.imbalance > 0 and super().applies(rng)

    def counts(self, shots: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Shots of each class, spread; queries as they are."""
        return scaled(shots, rng.uniform(1 - self.imbalance, 1 + self.imbalance, size=len(shots))), queries

    def most(self, shots: int, queries: int) -> tuple[int, int]:
        """round(shot (1 + b)) shots."""
        return int(scaled(np.array(shots), np.array(1 + self.imbalance))), queries


def scaled(counts: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """max(1, round(count * factor)), halves up."""
    return np.maximum(1, np.floor(counts * factors + 0.5)).astype(np.int64)
