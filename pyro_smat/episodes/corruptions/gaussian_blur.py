"""Gaussian blur of the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from pyro_smat.episodes.corruptions.corruption import PixelCorruption
from pyro_smat.registry import register

# Of the longer side: .4 to 1 pixels at 32 x 32, as in CIFAR-10-C for severities 1 to 5 (Hendrycks & Dietterich, 2019)
RADII = tuple(sigma / 32 for sigma in (0.4, 0.6, 0.7, 0.8, 1.0))


@register("corruption", "gaussian_blur")
@dataclass(frozen=True)
class GaussianBlur(PixelCorruption):
    """Blurs with a Gaussian whose standard deviation is 1/80 to 1/32 of the longer side."""

    def change(
        self, images: np.ndarray, labels: np.ndarray, way: int, rng: np.random.Generator, *, query: bool
    ) -> np.ndarray:
        """Blurred images."""
        sigma = RADII[self.severity - 1] * max(images.shape[-2:])
        return np.asarray(gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest"))
