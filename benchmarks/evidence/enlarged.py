"""Pictures of 28 px scaled to 64 px: how they are made, and taken apart again into what was scaled and the rounding.

`split` estimates the small pictures by least squares; what scaling them again does not give, one pixel in a hundred by
one, is kept beside them, so that `joined` gives the same bytes whatever the estimate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALL, LARGE = 28, 64
_NOTHING = 128  # rest of a pixel that scaling gives exactly

Pixels = NDArray[np.uint8]


def enlarge(image: Pixels) -> Pixels:
    """``(28, 28)`` grey to ``(64, 64)``, bilinear."""
    return np.asarray(Image.fromarray(image).resize((LARGE, LARGE), Image.Resampling.BILINEAR))


def split(images: Pixels) -> tuple[Pixels, Pixels]:
    """Small pictures ``(n, 28, 28)`` and rests ``(n, 64, 64)`` of large ones ``(n, 64, 64)``."""
    centres = (np.arange(LARGE) + 0.5) * SMALL / LARGE
    weights = np.maximum(0, 1 - np.abs(np.arange(SMALL) + 0.5 - centres[:, None]))
    inverse = np.linalg.pinv(weights / weights.sum(1, keepdims=True))
    small = np.clip(np.rint(inverse @ images.astype(np.float64) @ inverse.T), 0, 255).astype(np.uint8)
    scaled = np.stack([enlarge(image) for image in small])
    return small, images - scaled + np.uint8(_NOTHING)  # modulo 256


def joined(small: Pixels, rest: Pixels) -> Pixels:
    """The large pictures ``(n, 64, 64)`` that `split` took apart."""
    return np.stack([enlarge(image) for image in small]) + rest - np.uint8(_NOTHING)
