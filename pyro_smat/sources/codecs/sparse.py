"""Sparse replacement: the source's own values where they differ from the base. Lossless, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST = 2**31  # entries that int32 indices reach


def encode(tensor: Tensor, base: Tensor, tolerance: float) -> dict[str, Tensor] | None:
    """``indices`` (int32, into the flattened tensor) and ``values`` of the n entries whose bits differ; none of both
    where no entry does; None for a base of another dtype or shape."""
    if tensor.dtype != base.dtype or tensor.shape != base.shape or tensor.numel() > _LARGEST:
        return None
    differ = (bits(tensor) != bits(base)).flatten()
    return replacing(tensor, differ.nonzero().flatten())


def replacing(tensor: Tensor, indices: Tensor) -> dict[str, Tensor]:
    """The parts that put ``tensor``'s own values at ``indices`` ``(n,)``."""
    if not len(indices):
        return {}
    return {"indices": indices.to(torch.int32), "values": tensor.flatten()[indices]}


def decode(parts: dict[str, Tensor], base: Tensor) -> Tensor:
    """The base with the stored values in their places."""
    result = base.clone(memory_format=torch.contiguous_format)
    if parts:
        result.view(-1)[parts["indices"].long()] = parts["values"]
    return result


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers: -0.0 differs from 0.0, and a NaN equals itself."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])
