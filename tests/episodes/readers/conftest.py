"""Small image files of known pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_image() -> Callable[..., np.ndarray]:
    """``write_image(path, seed, size=6)`` saves random RGB pixels and returns them ``(H, W, 3)``."""

    def write(path: Path, seed: int = 0, size: int | tuple[int, int] = 6) -> np.ndarray:
        width, height = (size, size) if isinstance(size, int) else size
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return write
