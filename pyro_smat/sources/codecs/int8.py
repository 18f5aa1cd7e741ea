"""8-bit integers with one symmetric scale for every output channel, of weights or of their difference to the base."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 127


def encode(tensor: Tensor, base: Tensor, tolerance: float) -> dict[str, Tensor] | None:
    """``levels`` (int8, the tensor's shape) and ``scales`` (m,) float32: ``|difference|.max() / 127`` of each of the m
    output channels (the first dim); None for tensors of fewer than two dims, which are small."""
    if tensor.ndim < 2 or not tensor.numel():
        return None
    difference = (tensor.float() - base.float()).flatten(1)
    scales = difference.abs().amax(1) / _LEVELS
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(1)  # a channel of zeros, or too small to divide by
    levels = (difference / steps).round().clamp(-_LEVELS, _LEVELS)
    return {"levels": levels.to(torch.int8).view(tensor.shape), "scales": scales}


def decode(parts: dict[str, Tensor], base: Tensor) -> Tensor:
    """Base plus levels times scales, float32."""
    levels = parts["levels"]
    return base.float() + levels * parts["scales"].view(-1, *[1] * (levels.ndim - 1))
