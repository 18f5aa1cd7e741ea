"""Prototype moments: where the classes lie, how wide they are and how much they look alike, in a few averages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_smat.encoders.classes import class_statistics, mean_of_classes
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.networks.heads import similarities
from pyro_smat.registry import register


def similarity_moments(prototypes: Tensor, class_mask: Tensor) -> Tensor:
    """Mean, variance and maximum of the cosine between the prototypes of two different classes.

    Args:
        prototypes: ``(B, R, W, f)``.
        class_mask: ``(B, W)``.

    Returns:
        ``(B, R, 3)``; zeros where there is only one class.
    """
    way = class_mask.shape[-1]
    pairs = class_mask.unsqueeze(-1) & class_mask.unsqueeze(-2)  # (B, W, W)
    pairs = (pairs & ~torch.eye(way, dtype=torch.bool, device=pairs.device)).unsqueeze(1).flatten(-2)  # (B, 1, W x W)
    cosines = similarities(prototypes, prototypes).flatten(-2)  # (B, R, W x W)
    count = pairs.sum(-1).clamp(min=1)
    mean = (cosines * pairs).sum(-1) / count
    variance = ((cosines - mean.unsqueeze(-1)).square() * pairs).sum(-1) / count
    largest = cosines.masked_fill(~pairs, -torch.inf).amax(-1)
    largest = torch.where(pairs.any(-1), largest, 0.0)
    return torch.stack([mean, variance, largest], dim=-1)


@register("encoder", "prototype_moments")
class PrototypeMomentsEncoder(SupportEncoder):
    """Moments over the classes of a source, through one network.

    Mean and variance of the linearly mapped prototypes, mean within-class variance, mean size of a class, and mean,
    variance and maximum of the cosine between two prototypes.

    Args:
        feature_width: f.
        hidden: h.
    """

    def __init__(self, feature_width: int, hidden: int = 64) -> None:
        super().__init__(hidden)
        self.project = nn.Linear(feature_width, hidden)
        self.embed = nn.Sequential(nn.Linear(2 * hidden + 5, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.context = SourceContext(hidden)

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Arguments as in :meth:`SupportEncoder.forward`; the score is zero."""
        classes = class_statistics(features, labels, mask, class_mask.shape[-1])
        places = self.project(classes.prototypes)  # (B, R, W, h)
        place = mean_of_classes(places, class_mask)
        moments = [
            place,
            mean_of_classes((places - place.unsqueeze(-2)).square(), class_mask),
            mean_of_classes(torch.stack([classes.spread, classes.size], dim=-1), class_mask),
            similarity_moments(classes.prototypes, class_mask),
        ]
        embedding = self.embed(torch.cat(moments, dim=-1))
        return Encoding(embedding, score=torch.zeros_like(embedding[..., 0]))
