"""Label noise: some support labels are replaced by other labels of the episode."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pyro_smat.episodes.corruptions.corruption import RowCorruption
from pyro_smat.episodes.draw import Draw
from pyro_smat.episodes.index import ClassIndex
from pyro_smat.episodes.scope import Scope
from pyro_smat.registry import register


@register("corruption", "label_noise")
@dataclass(frozen=True)
class LabelNoise(RowCorruption):
    """Replaces round(p S) of the S support labels, each by another label of the episode, drawn uniformly.

    One random shot of each class is exempt, so that no class is without a true shot: p = 1 is therefore impossible, a
    1-shot episode stays clean, and at most S - way labels are replaced.

    Args:
        fraction: p in [0, 1), or a range ``(low, high)`` from which every episode draws uniformly.
        probability: share of the episodes that get label noise at all, in [0, 1].

    Raises:
        ValueError: for a value out of its range.

    Example:
        >>> print(LabelNoise((0.0, 0.5), probability=0.5))
        label noise 0 to 0.5 in 50% of the episodes
    """

    fraction: float | tuple[float, float] = 0.4

    at_severities = {"fraction": (0.1, 0.2, 0.3, 0.4, 0.5)}  # noqa: RUF012 (never changed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.fraction, tuple | list):
            if len(self.fraction) != 2:
                raise ValueError(f"fraction of label_noise is {self.fraction}; expected a number or a pair (low, high)")
            object.__setattr__(self, "fraction", tuple(self.fraction))
        low, high = self.range
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"fraction of label_noise is {self.fraction}; expected 0 <= low <= high < 1 "
                "(at 1 no class would keep a shot of its own, and nothing could be learned from the support)"
            )

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest fraction of replaced labels."""
        return self.fraction if isinstance(self.fraction, tuple) else (float(self.fraction), float(self.fraction))

    def __str__(self) -> str:
        low, high = self.range
        share = "" if self.probability == 1 else f" in {100 * self.probability:g}% of the episodes"
        return f"label noise {low:g}{'' if low == high else f' to {high:g}'}{share}"

    def applies(self, rng: np.random.Generator) -> bool:
        """Whether it happens to this episode."""
        # A certain noise draws too: changing the probability keeps the images of a seed.
        return self.range[1] > 0 and bool(rng.random() < self.probability)

    def check(self, scope: Scope) -> None:
        """Refuse a fraction that would leave a class without a true shot in the largest episode."""
        high, way = self.range[1], scope.way[1]
        size = way * scope.most_shots
        if self.probability > 0 and noisy_count(high, size) > size - way:
            raise ValueError(
                f"label_noise {high} replaces {noisy_count(high, size)} of {size} labels of a {way}-way "
                f"{scope.most_shots}-shot support; expected at most {size - way}, for every class keeps one true shot "
                "(raise shot or lower the fraction)"
            )

    def change(self, draw: Draw, index: ClassIndex, scope: Scope, rng: np.random.Generator) -> Draw:
        """The draw with noisy support labels."""
        low, high = self.range
        fraction = rng.uniform(low, high) if low < high else low
        return replace(draw, support_labels=replace_labels(draw.support_labels, draw.way, fraction, rng))


def noisy_count(fraction: float, support_size: int) -> int:
    """round(p S), halves up: how many of S labels a fraction p means."""
    return int(np.floor(fraction * support_size + 0.5))


def replace_labels(labels: np.ndarray, way: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """``(S,)`` labels with min(round(p S), S - way) of them replaced, as :class:`LabelNoise` defines it.

    Args:
        labels: ``(S,)`` int in [0, way), every class at least once.
        way: number of classes.
        fraction: p.
        rng: source of randomness.
    """
    candidates = spare_shots(labels, rng)
    chosen = candidates[: noisy_count(fraction, len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + rng.integers(1, way, size=len(chosen))) % way
    return noisy


def spare_shots(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of the shots in a random order, without the first of each class, which is exempt.

    Args:
        labels: ``(S,)`` int.
        rng: source of randomness.
    """
    exempt: set[int] = set()
    candidates = []
    for shot in rng.permutation(len(labels)).tolist():
        label = labels[shot]
        if label in exempt:
            candidates.append(shot)
        exempt.add(label)
    return np.array(candidates, dtype=np.int64)
