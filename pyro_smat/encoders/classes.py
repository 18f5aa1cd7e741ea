"""What the learned encoders know of a class: its prototype, its spread and its size; and means and maxima of classes.

Features enter with unit mean square: only their direction matters, as for the cosine head, and the first layer of a
network sees numbers near one whatever f is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.heads import class_sums


@dataclass(frozen=True)
class ClassStatistics:
    """The classes of a support set under every source.

    Attributes:
        prototypes: ``(B, R, W, f)`` means of the directions of the features; zero for an absent class.
        spread: ``(B, R, W)`` unbiased variance of the shots around their prototype, per feature; 0 for one shot.
        size: ``(B, R, W)`` log(1 + shots) / 3.
    """

    prototypes: Tensor
    spread: Tensor
    size: Tensor


def directions(features: Tensor) -> Tensor:
    """Features ``(*b, f)`` scaled to a mean square of 1; zero features stay zero."""
    return F.normalize(features, dim=-1) * features.shape[-1] ** 0.5


def class_statistics(features: Tensor, labels: Tensor, mask: Tensor, way: int) -> ClassStatistics:
    """Prototype, spread and size of every class.

    Args:
        features: ``(B, R, S, f)``.
        labels, mask: ``(B, S)``.
        way: W.
    """
    points, labels, mask = directions(features), labels.unsqueeze(1), mask.unsqueeze(1)
    sums, shots = class_sums(points, labels, mask, way)  # (B, R, W, f), (B, 1, W)
    centres = sums / shots.clamp(min=1).unsqueeze(-1)
    # Deviations, not squares minus the squared mean: a tight class must not drown in rounding.
    deviations = (points - torch.take_along_dim(centres, labels.unsqueeze(-1), -2)).square().mean(-1, keepdim=True)
    squares, _ = class_sums(deviations, labels, mask, way)  # (B, R, W, 1)
    spread = squares.squeeze(-1) / (shots - 1).clamp(min=1)
    return ClassStatistics(centres, spread, size=shot_sizes(shots).expand_as(spread))


def shot_sizes(shots: Tensor) -> Tensor:
    """log(1 + n) / 3: numbers of shots ``(*b)`` as an input of a network, about 1 at 20 shots."""
    return torch.log1p(shots) / 3.0


def mean_of_classes(values: Tensor, class_mask: Tensor) -> Tensor:
    """Mean ``(B, R, h)`` of ``(B, R, W, h)`` over the classes that ``class_mask`` ``(B, W)`` shows."""
    shown = class_mask[:, None, :, None]
    return values.masked_fill(~shown, 0.0).sum(-2) / shown.sum(-2)


def max_of_classes(values: Tensor, class_mask: Tensor) -> Tensor:
    """Maximum ``(B, R, h)`` of ``(B, R, W, h)`` over the classes that ``class_mask`` ``(B, W)`` shows."""
    return values.masked_fill(~class_mask[:, None, :, None], -torch.inf).amax(-2)
