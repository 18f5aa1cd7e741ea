"""Feature extractors: images ``(n, C, H, W)`` to features ``(n, f)``, our own Conv-4 and torchvision's networks.

Sources are checkpoints of one of these; heads (pyro_smat.networks.heads) turn features into logits. None updates
buffers in a
forward pass in evaluation mode and none works in place, so all run under ``torch.func.vmap(functional_call)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, group normalisation, ReLU and 2x2 max pooling, then flattened features.

    With ``stem="stride"`` the first block is a 5x5 convolution of stride 2 without pooling, which costs about a third
    on a CPU. There is no batch normalisation: an image's features do not depend on the other images.

    Args:
        in_channels: channels of the images.
        channels: channels of every block; the groups of the normalisation hold 8 channels (all, if fewer than 8).
        image_size: side of the square images in pixels, at least 16; each block halves it, rounding down.
        stem: "pool" or "stride".

    Attributes:
        feature_dim: f = channels * (image_size // 16) ** 2 for image sizes that 16 divides.

    Raises:
        ValueError: for an unknown stem, an image size below 16, or channels that 8 does not divide (when above 8).

    Source: Snell et al. 2017, "Prototypical networks for few-shot learning", with normalisation by groups.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 32,
        image_size: int = 32,
        stem: Literal["pool", "stride"] = "pool",
    ) -> None:
        super().__init__()
        if stem not in ("pool", "stride"):
            raise ValueError(f"Conv4 stem is {stem!r}; expected 'pool' or 'stride'")
        if image_size < 16:
            raise ValueError(f"Conv4 image_size is {image_size}; expected at least 16, it is halved four times")
        if channels > 8 and channels % 8:
            raise ValueError(
                f"Conv4 channels is {channels}; expected a multiple of 8 (the size of a group) or at most 8"
            )
        blocks = [
            _block(in_channels, channels, kernel=5, stride=2) if stem == "stride" else _block(in_channels, channels),
            *(_block(channels, channels) for _ in range(3)),
        ]
        self.blocks = nn.Sequential(*blocks)
        side = (image_size + 1) // 2 if stem == "stride" else image_size // 2
        for _ in range(3):
            side //= 2
        self.feature_dim = channels * side**2

    def forward(self, images: Tensor) -> Tensor:
        """``(n, C, H, W)`` to ``(n, f)``."""
        return self.blocks(images).flatten(1)


def _block(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2),
        nn.GroupNorm(max(1, channels // 8), channels),
        nn.ReLU(),
    ]
    if stride == 1:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def build_network(name: str, **options: Any) -> nn.Module:
    """A feature extractor by name, with random initial weights.

    Args:
        name: "conv4" (:class:`Conv4`), "mobilenet_v2", "resnet18", "vit_b_16" or "vit" (torchvision's, the
            classifier replaced by the identity). The first three normalise pixels themselves, by ImageNet's statistics.
        options: passed on to the constructor. "vit" needs image_size, patch_size, num_layers, num_heads, hidden_dim
            and mlp_dim, as torchvision's ``VisionTransformer`` does.

    Raises:
        ValueError: for a name that is not known, or options that the constructor does not take.
    """
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}; expected one of {sorted(NETWORKS)}")
    try:
        return NETWORKS[name](**options)
    except TypeError as error:
        raise ValueError(f"network {name!r} cannot be built with options {options}: {error}") from error


def feature_dim(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Number of features f that a module makes of one image of shape ``(C, H, W)``, found by a forward pass of zeros.

    Raises:
        ValueError: when the module does not map ``(1, C, H, W)`` to ``(1, f)``.
    """
    parameter = next(module.parameters(), torch.empty(0))
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            features = module(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        module.train(training)
    if features.ndim != 2 or features.shape[0] != 1:
        raise ValueError(
            f"{type(module).__name__} makes {tuple(features.shape)} of one image of shape {tuple(image_shape)}; "
            "expected (1, f): replace its classifier by torch.nn.Identity and flatten"
        )
    return features.shape[1]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _normalised(network: nn.Module) -> nn.Module:
    """Subtract ImageNet's mean and divide by its deviation before the first layer: images arrive in [0, 1]."""

    def normalise(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images = inputs[0]
        mean, deviation = (images.new_tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((images - mean) / deviation, *inputs[1:])

    network.register_forward_pre_hook(normalise)
    return network


def _mobilenet_v2(**options: Any) -> nn.Module:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(weights=None, **options)
    network.classifier = nn.Identity()
    return _normalised(network)


def _resnet18(**options: Any) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=None, **options)
    network.fc = nn.Identity()
    return _normalised(network)


def _vit_b_16(**options: Any) -> nn.Module:
    from torchvision.models import vit_b_16

    network = vit_b_16(weights=None, **options)
    network.heads = nn.Identity()
    return _normalised(network)


def _vit(**options: Any) -> nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(**options)
    network.heads = nn.Identity()
    return network


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "conv4": Conv4,
    "mobilenet_v2": _mobilenet_v2,
    "resnet18": _resnet18,
    "vit_b_16": _vit_b_16,
    "vit": _vit,
}
