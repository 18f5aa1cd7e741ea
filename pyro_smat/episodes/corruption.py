"""What is wrong with a support: how often, how much, and the label noise itself. Queries stay honest.

The sampler (:mod:`pyro_smat.episodes.sampler`) applies it while it draws, in training and in evaluation alike;
:mod:`pyro_smat.episodes.confounding` does the confounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SupportCorruption:
    """What is wrong with a support set, and how often.

    Attributes:
        label_noise: fraction p in [0, 1) of the support labels that are replaced: round(p S) of S, each by another
            label of the episode, drawn uniformly. A range ``(low, high)`` is drawn uniformly for every episode. One
            random shot of each class is exempt, so that no class is without a true shot: p = 1 is therefore impossible,
            a 1-shot episode stays clean, and at most S - way labels are replaced. ``Episode.corrupted_labels`` counts
            them.
        label_noise_probability: share of the episodes that get label noise at all.
        confounding: share of the episodes whose support is confounded: another attribute b takes one value v_k on all
            shots of class k, and the v_k are distinct, so that the support alone cannot tell the two attributes apart.
            ``Episode.confounded_with`` is b.

    Raises:
        ValueError: for a value outside these ranges.
    """

    label_noise: float | tuple[float, float] = 0.0
    label_noise_probability: float = 1.0
    confounding: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.label_noise, tuple | list) and len(self.label_noise) != 2:
            raise ValueError(f"label_noise is {self.label_noise}; expected a number or a pair (low, high)")
        low, high = self.label_noise_range
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"label_noise is {self.label_noise}; expected 0 <= low <= high < 1 "
                "(at 1 no class would keep a shot of its own, and nothing could be learned from the support)"
            )
        for name in ("label_noise_probability", "confounding"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability in [0, 1]")

    @property
    def label_noise_range(self) -> tuple[float, float]:
        """Smallest and largest fraction of replaced labels."""
        if isinstance(self.label_noise, tuple | list):
            return float(self.label_noise[0]), float(self.label_noise[1])
        return float(self.label_noise), float(self.label_noise)


def noisy_count(fraction: float, support_size: int) -> int:
    """round(p S), halves up: how many of S labels a fraction p means."""
    return int(np.floor(fraction * support_size + 0.5))


def replace_labels(labels: np.ndarray, way: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Label noise, as :class:`SupportCorruption` defines it.

    Args:
        labels: ``(S,)`` int in [0, way), every class at least once.
        way: number of classes.
        fraction: p.
        rng: source of randomness.

    Returns:
        ``(S,)`` labels with min(round(p S), S - way) of them replaced, and that number.
    """
    spared: set[int] = set()  # classes whose exempt shot, the first in a random order, has been met
    candidates = []
    for shot in rng.permutation(len(labels)).tolist():
        label = labels[shot]
        if label in spared:
            candidates.append(shot)
        spared.add(label)
    chosen = np.array(candidates[: noisy_count(fraction, len(labels))], dtype=np.int64)
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + rng.integers(1, way, size=len(chosen))) % way
    return noisy, len(chosen)
