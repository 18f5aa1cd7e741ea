"""resnet18: torchvision's, with 512 features and normalisation by ImageNet's statistics."""

from __future__ import annotations

from torch import nn

from pyro_smat.networks.preprocessing import imagenet
from pyro_smat.registry import register


@register("network", "resnet18")
def resnet18(*, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-18 without its classifier; names are torchvision's (``layer1.0.conv1.weight``).

    Args:
        zero_init_residual: start every residual branch at zero.

    Example:
        >>> import torch
        >>> resnet18().eval()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 512])
    """
    from torchvision.models import resnet18 as build

    network = build(weights=None, zero_init_residual=zero_init_residual)
    network.fc = nn.Identity()
    return imagenet(network)
