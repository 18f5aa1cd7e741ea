r"""Routings: how latent variables become coefficients c = (w, alpha).

Two families. **Simplex**: w and alpha are softmaxes of logits whose common shift means nothing, so the latent is the
vector of R - 1 (M - 1) *contrasts* of the logits in an orthonormal basis of the zero-sum plane. **Catalog**: a finite
list of allowed coefficient vectors, the latent is an index into it.

Priors and guides of one family share the sites named here; posteriors are defined in ``pyro_smat.guides.posterior``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

SOURCE_SITE = "source_contrasts"
EXPERT_SITE = "expert_contrasts"
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


def contrast_basis(size: int, like: Tensor) -> Tensor:
    """Orthonormal basis V ``(size, size - 1)`` of the zero-sum plane (Helmert), in the dtype and device of ``like``."""
    return _helmert(size).to(like, copy=True)


def softmax_of_contrasts(contrasts: Tensor) -> Tensor:
    """Weights ``(*b, n)`` on the simplex from contrasts u ``(*b, n - 1)``: softmax(V u)."""
    size = contrasts.shape[-1] + 1
    return (contrasts @ contrast_basis(size, contrasts).mT).softmax(-1)


@dataclass(frozen=True)
class Catalog:
    """A finite list of allowed routings A_1..A_J.

    Attributes:
        coefficients: ``(J, R + M)``; every row has its R source weights on the simplex.
        names: J names, for reports.
    """

    coefficients: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.coefficients.ndim != 2 or len(self.names) != len(self.coefficients) or not self.names:
            raise ValueError(
                f"catalog has coefficients {tuple(self.coefficients.shape)} and {len(self.names)} names; "
                "expected (J, R + M) and J names, J > 0"
            )

    @classmethod
    def k_hot(cls, sources: Sequence[str], experts: int = 0, max_sources: int = 1, limit: int = 256) -> Catalog:
        """Every uniform mixture of 1 to ``max_sources`` sources, each with every single expert (or none when M = 0).

        Raises:
            ValueError: when that makes no routing, or more than ``limit``.
        """
        if not sources or max_sources < 1:
            raise ValueError(f"got {len(sources)} sources and max_sources {max_sources}; expected at least 1 of each")
        count = sum(comb(len(sources), k) for k in range(1, min(max_sources, len(sources)) + 1))
        if count * max(experts, 1) > limit:
            raise ValueError(
                f"{count} source subsets x {max(experts, 1)} experts make {count * max(experts, 1)} routings; "
                f"expected at most {limit}: lower max_sources or raise the limit"
            )
        subsets = [s for k in range(1, max_sources + 1) for s in combinations(range(len(sources)), k)]
        rows, names = [], []
        for subset in subsets:
            weights = torch.zeros(len(sources))
            weights[list(subset)] = 1.0 / len(subset)
            label = "+".join(sources[r] for r in subset)
            for expert in range(max(experts, 1)):
                alpha = torch.zeros(experts)
                if experts:
                    alpha[expert] = 1.0
                rows.append(torch.cat([weights, alpha]))
                names.append(f"{label}/expert{expert}" if experts else label)
        return cls(torch.stack(rows), tuple(names))

    def __len__(self) -> int:
        return len(self.names)


def routing_costs(coefficients: Tensor, costs: Tensor) -> Tensor:
    """Cost of routings: the sum of the costs of all sources and experts that they open.

    Args:
        coefficients: ``(*b, C)``.
        costs: ``(C,)``, the price of opening each source and expert.

    Returns:
        ``(*b,)``.
    """
    return (coefficients > 0).to(costs.dtype) @ costs
