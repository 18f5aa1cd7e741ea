"""Three small padded supports of different shapes, and all encoders at one small size."""

from __future__ import annotations

import torch
from made_encoders import build_encoder
from torch import Tensor

from pyro_smat.encoders import SupportEncoder

FEATURES = 6
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def supports(seed: int = 0, sources: int = 3) -> Batch:
    """Three episodes: 3-way of 4, 2, 1 shots; 2-way of 2, 3; 4-way one-shot. Padded to 7 shots, 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, sources, 7, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[0, 1, 0, 2, 0, 1, 0], [0, 1, 1, 0, 1, 0, 0], [3, 0, 1, 2, 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3]).bool()
    class_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    return features, labels, mask, class_mask


def small_encoder(kind: str, seed: int = 0) -> SupportEncoder:
    """A double precision encoder, 16 wide."""
    torch.manual_seed(seed)
    return build_encoder(kind, feature_width=FEATURES, hidden=16).double()


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
