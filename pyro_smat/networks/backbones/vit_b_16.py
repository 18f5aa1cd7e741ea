"""vit_b_16: torchvision's, with 768 features and normalisation by ImageNet's statistics."""

from __future__ import annotations

from torch import nn

from pyro_smat.networks.preprocessing import imagenet
from pyro_smat.registry import register


@register("network", "vit_b_16")
def vit_b_16(*, image_size: int = 224) -> nn.Module:
    """ViT-B/16 without its head; names are torchvision's (``encoder.layers.encoder_layer_0.ln_1.weight``).

    Args:
        image_size: side of the images in pixels; those of another size are resized.
    """
    from torchvision.models import vit_b_16 as build

    network = build(weights=None, image_size=image_size)
    network.heads = nn.Identity()
    return imagenet(network, (image_size, image_size))
