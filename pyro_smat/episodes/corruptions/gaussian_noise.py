"""Gaussian noise on the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.episodes.corruptions.corruption import PixelCorruption
from pyro_smat.registry import register

# Hendrycks & Dietterich, Benchmarking neural network robustness to common corruptions, ICLR 2019: ImageNet-C
STANDARD_DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)


@register("corruption", "gaussian_noise")
@dataclass(frozen=True)
class GaussianNoise(PixelCorruption):
    """Adds independent normal noise to every pixel and channel: standard deviation .08 to .38, as in ImageNet-C."""

    def change(
        self, images: np.ndarray, labels: np.ndarray, way: int, rng: np.random.Generator, *, query: bool
    ) -> np.ndarray:
        """Noisy images."""
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        return images + np.float32(STANDARD_DEVIATIONS[self.severity - 1]) * noise
