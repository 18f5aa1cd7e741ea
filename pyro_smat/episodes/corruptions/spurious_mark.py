"""Spurious mark: a small square whose place gives the label away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.episodes.corruptions.corruption import PixelCorruption
from pyro_smat.registry import register

SIDES = (0.06, 0.1, 0.14, 0.18, 0.24)  # of the mark, over the shorter side of the image


@register("corruption", "spurious_mark")
@dataclass(frozen=True)
class SpuriousMark(PixelCorruption):
    """Every support of label k bears a square at the k-th of ``way`` places around the border.

    The square is white where the image is dark there, else black. Whoever learns from the marks learns nothing that the
    queries have; with ``queries`` they mislead, for every query bears the mark of another label, drawn uniformly.
    """

    def change(
        self, images: np.ndarray, labels: np.ndarray, way: int, rng: np.random.Generator, *, query: bool
    ) -> np.ndarray:
        """Marked images."""
        shown = (labels + rng.integers(1, way, size=len(labels))) % way if query else labels
        height, width = images.shape[-2:]
        side = max(1, round(SIDES[self.severity - 1] * min(height, width)))
        marked = images.copy()
        for image, label in zip(marked, shown.tolist(), strict=True):
            top, left = mark_place(label, way, height - side, width - side)
            patch = image[:, top : top + side, left : left + side]
            patch[:] = 1.0 if patch.mean() < 0.5 else 0.0
        return marked


def mark_place(label: int, way: int, height: int, width: int) -> tuple[int, int]:
    """The k-th of ``way`` equally spaced points on the outline of a ``height`` x ``width`` box, clockwise."""
    at = 2 * (height + width) * label / way
    corners = np.cumsum([0, width, height, width, height])
    top, left = np.interp(at, corners, [0, 0, height, height, 0]), np.interp(at, corners, [0, width, width, 0, 0])
    return round(float(top)), round(float(left))
