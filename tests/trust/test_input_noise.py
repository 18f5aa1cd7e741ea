"""The option --input-noise: draws are off by no more than it says, a seed stays a seed, and it can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from input_noise import InputNoise

DRAWS = {
    "numpy": lambda seed: np.random.default_rng(seed).normal(size=50),
    "numpy, one": lambda seed: np.array([np.random.default_rng(seed).random()]),
    "float64": lambda seed: torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy(),
    "in place": lambda seed: (
        torch.empty(50, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed)).numpy()
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_off_by_no_more_than_the_noise_and_repeat(draw) -> None:
    exact = draw(3)
    plugin = InputNoise(1e-9)
    try:
        first, again, other = draw(3), draw(3), draw(4)
    finally:
        plugin.undo()
    off = 1 - first / exact
    assert 1e-11 < off.max() <= 1e-9
    assert off.min() >= 0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(draw(3), exact)


def test_float32_is_off_by_its_own_rounding_and_whole_numbers_are_not() -> None:
    def drawn() -> tuple[torch.Tensor, np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(200, generator=generator), np.random.default_rng(0).permutation(9)

    exact, order = drawn()
    plugin = InputNoise(1e-12)
    try:
        found, same = drawn()
    finally:
        plugin.undo()
    off = (found / exact - 1).abs()
    assert 0.2 < (off > 0).float().mean() < 0.9
    assert off.max() < 3 * torch.finfo(torch.float32).eps
    assert np.array_equal(order, same)
