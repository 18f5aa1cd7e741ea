"""PixelStatistics: what the pixels of a pool look like, so that images from elsewhere can be held against them.

Taken from the training pool, saved with the router, and compared with what a person brings to it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.float64 import in_float64

_AT_ONCE = 4096  # images


class PixelStatistics(BaseModel):
    """Moments of pixel values in [0, 1].

    Attributes:
        mean: of all pixels.
        std: standard deviation of all pixels.
        image_std: standard deviation of the means of images.

    Example:
        >>> import torch
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8)
        >>> pool = ImagePool(images, torch.zeros(2, 1).long(), ("class",), (("cat",),), torch.zeros(2).long())
        >>> PixelStatistics.of(pool)
        PixelStatistics(mean=0.5, std=0.5, image_std=0.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    std: float
    image_std: float

    @classmethod
    def of(cls, pool: ImagePool) -> PixelStatistics:
        """Those of all images of a pool."""
        total = squares = image_squares = 0.0
        for start in range(0, len(pool), _AT_ONCE):
            pixels = in_float64(pool.images[start : start + _AT_ONCE]).flatten(1) / 255.0
            means = pixels.mean(1)
            total += float(means.sum())
            squares += float(pixels.square().mean(1).sum())
            image_squares += float(means.square().sum())
        mean = total / len(pool)
        return cls(
            mean=mean,
            std=max(squares / len(pool) - mean**2, 0.0) ** 0.5,
            image_std=max(image_squares / len(pool) - mean**2, 0.0) ** 0.5,
        )
