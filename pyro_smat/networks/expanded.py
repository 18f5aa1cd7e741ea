"""Expanded tensors: dims along which one entry in memory stands for all."""

from __future__ import annotations

from torch import Tensor


def expanded_dims(x: Tensor) -> tuple[bool, ...]:
    """Which dims of ``x`` are one entry that was expanded.

    Example:
        >>> import torch
        >>> expanded_dims(torch.zeros(2, 1).expand(2, 3))
        (False, True)
    """
    return tuple(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True))


def stored_part(x: Tensor) -> Tensor:
    """``x`` without what was expanded, a view.

    Example:
        >>> import torch
        >>> stored_part(torch.zeros(2, 1).expand(2, 3)).shape
        torch.Size([2, 1])
    """
    for dim, expanded in enumerate(expanded_dims(x)):
        x = x.narrow(dim, 0, 1) if expanded else x
    return x
