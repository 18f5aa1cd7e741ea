"""Tiny fixtures: pools whose pixels tell which image was drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_smat.data.pool import ImagePool


def encode_row(rows: Tensor) -> Tensor:
    """``(n, 1, 2, 2)`` uint8 images that hold their row number plus one in base 256, so that no image is all zeros."""
    digits = torch.stack([((rows + 1) // 256**p) % 256 for p in range(4)], 1)
    return digits.to(torch.uint8).reshape(-1, 1, 2, 2)


def decode_row(images: Tensor) -> Tensor:
    """Row numbers ``(...)`` of float images ``(..., 1, 2, 2)`` in [0, 1]."""
    digits = (images * 255).round().long().flatten(-3)
    return (digits * 256 ** torch.arange(4)).sum(-1) - 1


@pytest.fixture(scope="session")
def decode() -> Callable[[Tensor], Tensor]:
    """Turns drawn images back into rows of the pool."""
    return decode_row


@pytest.fixture(scope="session")
def crossed_pool() -> ImagePool:
    """1440 images: 8 shapes x 6 colours x 6 sizes, five of each in domains ``day`` (3) and ``night`` (2), shuffled."""
    cells = torch.tensor(list(itertools.product(range(8), range(6), range(6), [0, 0, 0, 1, 1])))
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))]
    return ImagePool(
        images=encode_row(torch.arange(len(cells))),
        labels=cells[:, :3].contiguous(),
        attributes=("shape", "colour", "size"),
        class_names=(
            tuple(f"shape{i}" for i in range(8)),
            tuple(f"colour{i}" for i in range(6)),
            tuple(f"size{i}" for i in range(6)),
        ),
        domain=cells[:, 3].contiguous(),
        domain_names=("day", "night"),
    )


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., ImagePool]:
    """``make_pool({"a": 20, "b": 7})``: one attribute ``class`` with these counts; a dict of dicts gives domains."""

    def make(counts: dict) -> ImagePool:
        nested = counts if all(isinstance(c, dict) for c in counts.values()) else {"all": counts}
        names = sorted({name for inner in nested.values() for name in inner})
        cells = [
            (names.index(name), d)
            for d, inner in enumerate(nested.values())
            for name, n in inner.items()
            for _ in range(n)
        ]
        table = torch.tensor(cells)
        return ImagePool(
            images=encode_row(torch.arange(len(table))),
            labels=table[:, :1].contiguous(),
            attributes=("class",),
            class_names=(tuple(names),),
            domain=table[:, 1].contiguous(),
            domain_names=tuple(nested),
        )

    return make
