"""vit: a vision transformer of any size, without preprocessing: for networks trained from scratch."""

from __future__ import annotations

from torch import nn

from pyro_smat.registry import register


@register("network", "vit")
def vit(
    *, image_size: int, patch_size: int, num_layers: int, num_heads: int, hidden_dim: int, mlp_dim: int
) -> nn.Module:
    """torchvision's ``VisionTransformer`` without its head, and without preprocessing.

    Args:
        image_size: side of the images in pixels, a multiple of ``patch_size``.
        patch_size: side of a patch.
        num_layers: of the encoder.
        num_heads: of every attention layer.
        hidden_dim: f, the width of a token.
        mlp_dim: width of the hidden layer between attention layers.

    Example:
        >>> import torch
        >>> small = vit(image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=6, mlp_dim=8)
        >>> small(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 6])
    """
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
    )
    network.heads = nn.Identity()
    return network
