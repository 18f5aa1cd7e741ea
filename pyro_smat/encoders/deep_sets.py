"""Deep sets: a class is a set of shots, a support is a set of classes, and both are pooled after a learned network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_smat.encoders.classes import directions, max_of_classes, mean_of_classes, shot_sizes
from pyro_smat.encoders.encoder import Encoding, SourceContext, SupportEncoder
from pyro_smat.networks.heads import class_sums
from pyro_smat.registry import register


@register("encoder", "deep_sets")
class DeepSetsEncoder(SupportEncoder):
    r"""Class vectors :math:`h_k = \rho(\frac{1}{n_k} \sum_{i: y_i = k} \phi(x_i), n_k)`, pooled over the classes.

    x is the direction of a feature; the pooled view of a source is a linear map of the mean and the maximum of its
    class vectors. Source: Zaheer et al. 2017, Deep Sets, theorem 2, applied twice.

    Args:
        feature_width: f.
        hidden: h.
    """

    def __init__(self, feature_width: int, hidden: int = 64) -> None:
        super().__init__(hidden)
        self.phi = nn.Sequential(nn.Linear(feature_width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.rho = nn.Sequential(nn.Linear(hidden + 1, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.pool = nn.Linear(2 * hidden, hidden)
        self.context = SourceContext(hidden)

    def encode_alone(self, features: Tensor, labels: Tensor, mask: Tensor, class_mask: Tensor) -> Encoding:
        """Arguments as in :meth:`SupportEncoder.forward`; the score is zero."""
        points = self.phi(directions(features))  # (B, R, S, h)
        sums, shots = class_sums(points, labels.unsqueeze(1), mask.unsqueeze(1), class_mask.shape[-1])
        shots = shots.unsqueeze(-1).expand(*sums.shape[:-1], 1)  # (B, R, W, 1)
        classes = self.rho(torch.cat([sums / shots.clamp(min=1), shot_sizes(shots)], dim=-1))
        pooled = [mean_of_classes(classes, class_mask), max_of_classes(classes, class_mask)]
        embedding = self.pool(torch.cat(pooled, dim=-1))
        return Encoding(embedding, score=torch.zeros_like(embedding[..., 0]))
