"""mobilenet_v2: torchvision's, with 1280 features and normalisation by ImageNet's statistics."""

from __future__ import annotations

from torch import nn

from pyro_smat.networks.preprocessing import imagenet
from pyro_smat.registry import register


@register("network", "mobilenet_v2")
def mobilenet_v2(*, width_mult: float = 1.0) -> nn.Module:
    """MobileNetV2 without its classifier; names are torchvision's (``features.0.0.weight``).

    Args:
        width_mult: factor of the number of channels.

    Example:
        >>> import torch
        >>> mobilenet_v2(width_mult=0.1).eval()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 1280])
    """
    from torchvision.models import mobilenet_v2 as build

    network = build(weights=None, width_mult=width_mult)
    network.classifier = nn.Identity()
    return imagenet(network)
