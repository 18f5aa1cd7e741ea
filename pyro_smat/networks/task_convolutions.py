"""Convolutions of T tasks at once: what one ``(T, n, C, H, W)`` batch and T kernels become, on each kind of device.

- As a rule T networks are one network of T C channels with T groups. On a GPU these lie in memory channels last,
  ``(n, H, W, T, C)``: grouped kernels for other layouts are slow, and depthwise ones very. (Normalisation by groups has
  a kernel for channels first alone, so its networks keep that.)
- On a GPU a 1x1 convolution is one batched product of pixels and weights, in that layout or with tasks first, as its
  input lies.
- On a CPU large kernels (few pixels for many weights) run one task after the other: grouped, their reordering costs
  more than the product.

All are plain operations to autograd, so chunks, recomputation and double backward work as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.evaluation_mode import with_tasks
from pyro_smat.networks.reached_taps import convolved
from pyro_smat.networks.task_products import TaskProduct

LARGE_KERNEL = 2**18  # weights of a task from which on a CPU runs tasks one after the other; found by timing


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation and groups, as :class:`torch.nn.Conv2d` has them.

    ``channels_last``: whether that is a good layout for the layers around it too.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool = True

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, tasks: int = 1) -> Tensor:
        return convolved(F.conv2d, x, weight, bias, self.stride, self.padding, self.dilation, self.groups * tasks)


class TaskConvolution(torch.autograd.Function):
    """``TaskConvolution.apply(geometry, x, weight, bias)`` under vmap: x ``(n, C, H, W)`` and weight of every task."""

    @staticmethod
    def forward(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise RuntimeError("task layers run under torch.func.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
        tasks = info.batch_size
        x = with_tasks(x, in_dims[1], tasks, 0)
        weight = with_tasks(weight, in_dims[2], tasks, 0)
        bias = bias if bias is None else with_tasks(bias, in_dims[3], tasks, 0)
        return convolve_tasks(geometry, x, weight, bias), 0


def convolve_tasks(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``(T, n, C, H, W)``, weights ``(T, O, C / groups, *kernel)`` and biases ``(T, O)`` to ``(T, n, O, H', W')``."""
    if not x.is_cuda:
        if geometry.groups == 1 and prod(weight.shape[1:]) >= LARGE_KERNEL:
            return _one_by_one(geometry, x, weight, bias)
        return _grouped(geometry, x.transpose(0, 1).flatten(1, 2), weight, bias)
    if weight.shape[-2:] == (1, 1) and geometry.groups == 1 and geometry.padding in ((0, 0), "valid"):
        return _pointwise(geometry, x, weight, bias)
    depthwise = geometry.groups == x.shape[2] > 1
    small = min(x.shape[-2:]) < (max(weight.shape[-2:]) + 1) // 2 and not isinstance(geometry.padding, str)
    if depthwise and small:
        return _small_maps(geometry, x, weight, bias)
    if depthwise or (geometry.channels_last and x.shape[2] >= 8):  # images of three colours have kernels of their own
        return _grouped(geometry, channels_last(x), weight, bias)
    return _grouped(geometry, x.transpose(0, 1).flatten(1, 2), weight, bias)


def channels_last(x: Tensor) -> Tensor:
    """``(T, n, C, H, W)`` as ``(n, T C, H, W)`` that lies in memory as ``(n, H, W, T, C)``."""
    return x.permute(1, 3, 4, 0, 2).contiguous().flatten(3).permute(0, 3, 1, 2)


def _grouped(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tasks = len(weight)
    bias = bias if bias is None else bias.flatten()
    y = geometry.convolve(x, weight.flatten(0, 1), bias, tasks)
    return y.unflatten(1, (tasks, -1)).transpose(0, 1)


def _small_maps(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = SmallMaps.apply(geometry, channels_last(x), weight.flatten(0, 1), len(weight))
    y = y.unflatten(1, (len(weight), -1)).transpose(0, 1)
    return y if bias is None else y + bias[:, None, :, None, None]


class SmallMaps(torch.autograd.Function):
    """Depthwise convolution, on a GPU, of maps smaller than half the kernel.

    Channels last, its forward pass is one launch for each channel; channels first it is not, but has a slow backward
    pass. So each has the layout that suits it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(geometry: Geometry, x: Tensor, weight: Tensor, tasks: int) -> Tensor:
        return geometry.convolve(x.contiguous(), weight, None, tasks)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.geometry, x, weight, ctx.tasks = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight), geometry = gradients, ctx.saved_tensors, ctx.geometry
        _, for_x, for_weight, _ = ctx.needs_input_grad
        g = g.contiguous(memory_format=torch.channels_last)
        one = (geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), geometry.groups * ctx.tasks)
        own, of_weight, _ = torch.ops.aten.convolution_backward(g, x, weight, None, *one, (for_x, for_weight, False))
        return None, own, of_weight, None


def _one_by_one(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    biases = (None,) * len(weight) if bias is None else bias.unbind(0)
    rows = zip(x.unbind(0), weight.unbind(0), biases, strict=True)
    return torch.stack([geometry.convolve(*row) for row in rows])


def _pointwise(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    down, across = geometry.stride
    if (down, across) != (1, 1):
        x = x[..., ::down, ::across]
    n, height, width = x.shape[1], *x.shape[3:]
    if x.permute(0, 1, 3, 4, 2).is_contiguous():  # tasks first
        pixels = x.permute(0, 1, 3, 4, 2).flatten(1, 3)
    else:
        pixels = x.permute(1, 3, 4, 0, 2).contiguous().flatten(0, 2).transpose(0, 1)
    y = TaskProduct.apply(pixels, weight.flatten(2), bias)
    return y.unflatten(1, (n, height, width)).permute(0, 1, 4, 2, 3)
