"""Max pooling on a CPU where no gradient is wanted: the same values as maxima of slices, several times faster.

PyTorch's kernel for images whose channels come first looks at one pixel after the other; here all windows take a step
together, first down the rows, then along the columns. Where a gradient is wanted its kernel stays: it notes where each
maximum was, which makes the backward pass twice as fast as that of the slices, and of equal pixels the first one has
the whole gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 2**13  # numbers in an input below which starting the operations takes longer than they save

Sizes = int | Sequence[int]


def max_pooled(
    function: Callable[..., Tensor],
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    **options: Any,
) -> Tensor:
    """``function(input, kernel_size, ...)``, of ``F.max_pool2d`` and ``torch.max_pool2d``, for no gradient.

    The function itself runs on a GPU, where channels come last, for small inputs, and to refuse what can't be pooled.

    Args:
        function: the one of the two that was called.
        input: ``(*b, H, W)``.
        kernel_size, stride, padding, dilation, ceil_mode, options: its arguments.

    Example:
        >>> x = torch.rand(1, 32, 16, 16)
        >>> torch.equal(max_pooled(F.max_pool2d, x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))
        True
    """
    kernels, paddings, dilations = _both(kernel_size), _both(padding), _both(dilation)
    strides = kernels if stride in (None, [], ()) else _both(stride)
    windows = _windows(input.shape[-2:], kernels, strides, paddings, dilations)
    if ceil_mode or windows is None or not _gains(input):
        return function(input, kernel_size, stride, padding, dilation, ceil_mode, **options)
    x = input
    if any(paddings):
        x = F.pad(x, (paddings[1], paddings[1], paddings[0], paddings[0]), value=-torch.inf)
    for dim, count, kernel, step, apart in zip((-2, -1), windows, kernels, strides, dilations, strict=True):
        reach = (count - 1) * step + 1  # from a pixel of the first window to that of the last
        parts = [x.narrow(dim, tap * apart, reach) for tap in range(kernel)]
        x, *others = (part[..., ::step, :] if dim == -2 else part[..., ::step] for part in parts)
        for other in others:
            x = torch.maximum(x, other)
    return x


def _windows(sizes: Sequence[int], *geometry: tuple[int, int]) -> tuple[int, ...] | None:
    """How many windows lie along each of the two sides; None where PyTorch refuses the numbers."""
    counts = []
    for size, kernel, stride, padding, dilation in zip(sizes, *geometry, strict=True):
        if min(kernel, stride, dilation) < 1 or not 0 <= 2 * padding <= kernel:
            return None
        counts.append((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return tuple(counts) if min(counts) > 0 else None


def _gains(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.requires_grad or not x.is_floating_point() or torch.compiler.is_compiling():
        return False
    return x.stride()[-2:] == (x.shape[-1], 1) and x.numel() >= SMALL


def _both(sizes: Sizes) -> tuple[int, int]:
    values = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (values[0], values[-1])
