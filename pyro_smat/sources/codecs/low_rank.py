"""Low rank: a truncated singular value decomposition of a matrix's difference to the base."""

from __future__ import annotations

import torch
from torch import Tensor

_MARGIN = 0.999  # of the tolerance: the rest is for rounding


def encode(tensor: Tensor, base: Tensor, tolerance: float) -> dict[str, Tensor] | None:
    """Factors ``left`` (m, r) and ``right`` (r, n) of the difference as a matrix of m output channels, float32.

    The rank r is the smallest with ``|difference - left right| <= tolerance |difference|`` (Eckart and Young 1936: the
    rest has the norm of the singular values that were left out).

    Returns:
        None for a tensor that is no matrix (fewer than two dims), or a rank at which the factors are no smaller.
    """
    if tensor.ndim < 2 or not tensor.numel():
        return None
    difference = (tensor.float() - base.float()).flatten(1)
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    tail = values.double().square().flip(0).cumsum(0).flip(0)  # tail[r]: squared error at rank r
    rank = int((tail > (_MARGIN * tolerance) ** 2 * tail[0]).sum())
    if 4 * rank * sum(difference.shape) >= tensor.numel() * tensor.element_size():
        return None
    root = values[:rank].sqrt()
    return {"left": (left[:, :rank] * root).contiguous(), "right": (root[:, None] * right[:rank]).contiguous()}


def decode(parts: dict[str, Tensor], base: Tensor) -> Tensor:
    """Base plus the product of the factors, float32."""
    return base.float() + (parts["left"] @ parts["right"]).view(base.shape)
