"""JPEG compression of the images."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from pyro_smat.episodes.corruptions.corruption import PixelCorruption
from pyro_smat.registry import register

QUALITIES = (25, 18, 15, 10, 7)  # Hendrycks & Dietterich, 2019: ImageNet-C


@register("corruption", "jpeg")
@dataclass(frozen=True)
class Jpeg(PixelCorruption):
    """Compresses as JPEG of quality 25 to 7, as in ImageNet-C; three channels as colours, others one by one."""

    def change(
        self, images: np.ndarray, labels: np.ndarray, way: int, rng: np.random.Generator, *, query: bool
    ) -> np.ndarray:
        """Images after compression."""
        pixels = np.rint(255 * images).astype(np.uint8)
        n, channels, height, width = pixels.shape
        if channels == 3:
            found = np.stack([self._compress(p) for p in pixels.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2)
        else:
            found = np.stack([self._compress(p) for p in pixels.reshape(n * channels, height, width)])
        return found.reshape(images.shape).astype(np.float32) / 255

    def _compress(self, pixels: np.ndarray) -> np.ndarray:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITIES[self.severity - 1])
        return np.asarray(Image.open(file))
