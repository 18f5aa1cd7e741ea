"""A fixed set of quasi-random points, for means of weights that have no closed form."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

POINTS = 512


@lru_cache(maxsize=64)
def _sobol(dimension: int) -> Tensor:
    with torch.inference_mode(False):  # the cached points must serve autograd later
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
        return engine.draw(POINTS, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)


def uniform_points(dimension: int) -> Tensor:
    """512 scrambled Sobol points in the open unit cube, ``(512, dimension)``, the same ones every time, float64."""
    return _sobol(dimension).clone()
