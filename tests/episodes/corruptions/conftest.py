"""A pool with pictures large enough to be altered."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes import ImagePool


@pytest.fixture(scope="session")
def pictures() -> ImagePool:
    """6 classes x 2 domains x 12 smooth random pictures, 3 x 24 x 24."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(144, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(rough, size=24, mode="bilinear").mul(255).to(torch.uint8)
    cells = torch.cartesian_prod(torch.arange(6), torch.arange(2), torch.arange(12))
    names = tuple(f"class{k}" for k in range(6))
    return ImagePool(
        images, cells[:, :1].contiguous(), ("class",), (names,), cells[:, 1].contiguous(), ("day", "night")
    )
