"""Float noise on what tests draw: ``pytest --input-noise 1e-12 tests/solvers``.

A test whose tolerance hangs on how one CPU rounds its inputs passes here and fails on another machine. With the option,
every float that NumPy's generators or PyTorch draw is made smaller by a factor between 1 and 1 - noise (1 - eps of the
dtype where that is more), which keeps it in (0, 1) where it was. The factor is a hash of the number's own bits: equal
numbers stay equal, and the same seed still gives the same numbers. Whole numbers stay whole, and what a test writes
down, which is the same on every machine, stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

NUMPY = ("random", "uniform", "normal", "standard_normal", "exponential", "gamma", "beta", "dirichlet", "lognormal")
TORCH = ("rand", "randn", "rand_like", "randn_like", "normal")
IN_PLACE = ("normal_", "uniform_", "exponential_", "log_normal_", "cauchy_")
BITS = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}


def noisy(numbers: Any, noise: float) -> Any:
    """``x (1 - noise u)`` with u in [0, 1) from the bits of x; whole numbers and other dtypes as they are."""
    array = np.asarray(numbers)
    if array.dtype not in BITS:
        return numbers
    bits = np.ascontiguousarray(array).view(BITS[array.dtype]).astype(np.uint64)
    with np.errstate(over="ignore"):
        share = ((bits + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)).astype(np.float64) / 2.0**53
    size = max(noise, float(np.finfo(array.dtype).eps))
    changed = np.where(array == np.rint(array), array, array * (1 - size * share.reshape(array.shape)))
    changed = changed.astype(array.dtype)
    return changed if isinstance(numbers, np.ndarray) else changed[()]


class InputNoise:
    """The plugin: from its making to :meth:`undo` draws are noisy; it counts the tests that drew any."""

    def __init__(self, noise: float) -> None:
        self.noise, self.draws, self.tests, self.ran = noise, 0, 0, 0
        self.patch = pytest.MonkeyPatch()
        for name in TORCH:
            self.patch.setattr(torch, name, self._torch(getattr(torch, name)))
        for name in IN_PLACE:
            self.patch.setattr(torch.Tensor, name, self._torch(getattr(torch.Tensor, name)))
        drawn = {name: self._numpy(getattr(np.random.Generator, name)) for name in NUMPY}
        generator = type("Generator", (np.random.Generator,), drawn)
        made = np.random.default_rng

        def default_rng(seed: Any = None) -> np.random.Generator:
            return seed if isinstance(seed, generator) else generator(made(seed).bit_generator)

        self.patch.setattr(np.random, "default_rng", default_rng)

    def _numpy(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(draw)
        def changed(*args: Any, **options: Any) -> Any:
            numbers = draw(*args, **options)
            self.draws += 1
            return noisy(numbers, self.noise)

        return changed

    def _torch(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(draw)
        def changed(*args: Any, **options: Any) -> Any:
            numbers = draw(*args, **options)
            if numbers.dtype not in (torch.float32, torch.float64):
                return numbers
            self.draws += 1
            with torch.no_grad():
                numbers.copy_(torch.from_numpy(np.asarray(noisy(numbers.detach().cpu().numpy(), self.noise))))
            return numbers

        return changed

    def undo(self) -> None:
        self.patch.undo()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        before = self.draws
        result = yield
        self.ran += 1
        self.tests += self.draws > before
        return result

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(f"input noise of {self.noise:g}: in {self.tests} of {self.ran} tests")
