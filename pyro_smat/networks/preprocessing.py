"""Preprocessing: what a network does to images in [0, 1] before its first layer.

It is a hook of the network, not a layer: names of parameters stay those of its checkpoints. TaskNetwork applies it once
for all tasks that share their images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, rescale, normalise: ``((low + (high - low) x) - mean) / std``.

    Attributes:
        mean: of every channel, or None for none.
        std: standard deviation of every channel, or None.
        size: (height, width) in pixels that images are resized to (no cropping); None where any size will do.
        value_range: (low, high) that pixels in [0, 1] are mapped to before the mean is subtracted.
        interpolation: of resizing, antialiased but for "nearest".

    Example:
        >>> import torch
        >>> Preprocessing((0.5,), (0.25,), size=(4, 4))(torch.ones(2, 1, 8, 8)).unique()
        tensor([2.])
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, C, H, W)`` in [0, 1] to ``(n, C, *size)``."""
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            smooth: dict[str, Any] = {} if self.interpolation == "nearest" else {"antialias": True}
            resized = F.interpolate(images.float(), self.size, mode=self.interpolation, **smooth)
            images = resized.to(images.dtype)
        low, high = self.value_range
        if (low, high) != (0.0, 1.0):
            images = images * (high - low) + low
        if self.mean is not None:
            images = images - _per_channel(self.mean, images)
        if self.std is not None:
            images = images / _per_channel(self.std, images)
        return images

    def attach(self, network: nn.Module) -> nn.Module:
        """``network`` (changed in place), which from now on does this to its images first."""
        network.register_forward_pre_hook(_Hook(self))
        return network


_ON_DEVICES: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """``(C, 1, 1)`` like the images; copied to a device once, since such a copy waits for all work before it."""
    if images.device.type == "cpu" or torch.compiler.is_compiling():
        return images.new_tensor(values).view(-1, 1, 1)
    key = (values, images.device, images.dtype)
    if key not in _ON_DEVICES:
        with torch.inference_mode(False):
            _ON_DEVICES[key] = torch.tensor(values, device=images.device, dtype=images.dtype).view(-1, 1, 1)
    return _ON_DEVICES[key]


@dataclass(frozen=True)
class _Hook:
    preprocessing: Preprocessing

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.preprocessing(inputs[0]), *inputs[1:])


def imagenet(network: nn.Module, size: tuple[int, int] | None = None) -> nn.Module:
    """``network`` with normalisation by ImageNet's mean and standard deviation (and resizing, where it has a size)."""
    return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, size).attach(network)


def preprocessing_of(network: nn.Module) -> Sequence[Preprocessing]:
    """What ``network`` does to its images before any other hook, in the order of use."""
    return [hook.preprocessing for hook in _leading(network).values()]


def detach_preprocessing(network: nn.Module) -> Sequence[Preprocessing]:
    """:func:`preprocessing_of` ``network``, taken off it (in place)."""
    found = _leading(network)
    for key in found:
        del network._forward_pre_hooks[key]
    return [hook.preprocessing for hook in found.values()]


def _leading(network: nn.Module) -> dict[int, _Hook]:
    found: dict[int, _Hook] = {}
    for key, hook in network._forward_pre_hooks.items():
        if not isinstance(hook, _Hook):
            break
        found[key] = hook
    return found
