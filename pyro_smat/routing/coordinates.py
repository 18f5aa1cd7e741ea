r"""Coordinates of the simplex: how latent variables become weights.

w and alpha are softmaxes of logits whose common shift means nothing, so the latent is the vector of R - 1 (M - 1)
*isometric log-ratio* (ILR) coordinates of the logits, in an orthonormal basis of the zero-sum plane (Egozcue et al.
2003). Priors and guides of one family share the sites named here.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SOURCE_SITE = "source_ilr"
EXPERT_SITE = "expert_ilr"
CATALOG_SITE = "routing"


@lru_cache(maxsize=64)
def _helmert(size: int) -> Tensor:
    rows = []
    with torch.inference_mode(False):  # the cached basis must serve autograd later
        for k in range(1, size):
            row = torch.zeros(size, dtype=torch.float64)
            row[:k], row[k] = 1.0, -float(k)
            rows.append(row / row.norm())
        return torch.stack(rows, dim=1) if rows else torch.zeros(size, 0, dtype=torch.float64)


def ilr_basis(size: int, like: Tensor) -> Tensor:
    """Orthonormal basis V ``(size, size - 1)`` of the zero-sum plane (Helmert), in the dtype and device of ``like``."""
    return _helmert(size).to(like, copy=True)


def softmax_of_ilr(ilr: Tensor) -> Tensor:
    """Weights ``(*b, n)`` on the simplex from ILR coordinates u ``(*b, n - 1)``: softmax(V u)."""
    size = ilr.shape[-1] + 1
    return (ilr @ ilr_basis(size, ilr).mT).softmax(-1)


def straight_through(coefficients: Tensor, sources: int) -> Tensor:
    """One-hot source weights and one-hot expert weights at the largest, with the gradient of the soft ones.

    Args:
        coefficients: ``(*b, R + M)``.
        sources: R.
    """
    parts = [part for part in coefficients.split([sources, coefficients.shape[-1] - sources], dim=-1) if part.numel()]
    hard = [torch.zeros_like(part).scatter(-1, part.argmax(-1, keepdim=True), 1.0) for part in parts]
    return torch.cat(hard, dim=-1) + (coefficients - coefficients.detach())
