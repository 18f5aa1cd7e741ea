"""Comparison of batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled


def same(a: EpisodeBatch | Episode | Labelled, b: EpisodeBatch | Episode | Labelled) -> None:
    for name in vars(a):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, Labelled):
            same(left, right)
        elif isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), name
        else:
            assert left == right, name


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Whether two batches, episodes or sets of images are equal to the bit."""
    return same
