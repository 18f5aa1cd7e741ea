"""conv4: the small network of few-shot learning, four blocks of convolution, normalisation by groups and pooling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pyro_smat.registry import register


@register("network", "conv4")
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

    Example:
        >>> import torch
        >>> Conv4(channels=8, image_size=28)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 8])

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
