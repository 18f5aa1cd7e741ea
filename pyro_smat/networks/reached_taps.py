"""Kernels whose outer taps see nothing but padding: in 16 bits on a CPU, their gradient is not written.

A 3 x 3 kernel with stride 2 and padding 1 on a map of one pixel (the last stages of a ResNet on small images) touches
that pixel with its middle tap alone. The gradient of the other eight is zero, but oneDNN, with which PyTorch 2.14
computes it in bfloat16, leaves some of them as the memory was: huge numbers or NaN, now and then. A kernel that is
filled with zeros there gives the same outputs, and its gradient is filled with zeros in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Sizes = int | Sequence[int]


def convolved(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """``function(input, weight, ...)``, of conv1d, conv2d and conv3d, with the gradient of every weight.

    Example:
        >>> x, weight = (torch.ones(1, 1, n, n, dtype=torch.bfloat16, requires_grad=True) for n in (1, 3))
        >>> convolved(torch.nn.functional.conv2d, x, weight, stride=2, padding=1).backward()
        >>> weight.grad.squeeze().tolist()
        [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    if weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16):
        kernel = tuple(weight.shape[2:])
        dims = len(kernel)
        sides = padding if isinstance(padding, str) else _each(padding, dims)
        size = tuple(input.shape[-dims:])
        unreached = _unreached(size, kernel, _each(stride, dims), sides, _each(dilation, dims))
        weight = weight if unreached is None else weight.masked_fill(unreached, 0.0)
    return function(input, weight, bias, stride, padding, dilation, groups)


def _each(sizes: Sizes, dims: int) -> tuple[int, ...]:
    values = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return values * dims if len(values) == 1 else values


@lru_cache(maxsize=1024)
def _unreached(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    paddings: tuple[int, ...] | str,
    dilations: tuple[int, ...],
) -> Tensor | None:
    """``(*kernel)`` bool, None where there are none."""
    with torch.inference_mode(False):  # it serves autograd later
        reached = torch.ones(kernel, dtype=torch.bool)
        for dim, (size, taps, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
            span = dilation * (taps - 1)
            if isinstance(paddings, str):
                before, after = (span // 2, span - span // 2) if paddings == "same" else (0, 0)
            else:
                before = after = paddings[dim]
            starts = range(-before, size + after - span, stride)
            seen = torch.tensor([any(0 <= start + tap * dilation < size for start in starts) for tap in range(taps)])
            reached &= seen.view([-1 if dim == other else 1 for other in range(len(kernel))])
        return None if reached.all() else ~reached
