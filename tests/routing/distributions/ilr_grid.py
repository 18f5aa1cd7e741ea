"""Quadrature over ILR coordinates, and small distributions of every family to try it on."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.routing.distributions import (
    ILRConcrete,
    ILRDirichlet,
    ILRDistribution,
    ILRMixture,
    ILRNormal,
    ILRSimplexCost,
)


def grid(size: int) -> tuple[Tensor, float]:
    """Points ``(P, n - 1)`` of a product trapezoid rule for n = 2 or 3 and the weight of each.

    The densities are analytic and decay exponentially, for which the rule is exact to many digits.
    """
    step = 0.05 if size == 2 else 0.2
    line = torch.arange(-45.0, 45.0 + step, step, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * (size - 1)).view(-1, size - 1), step ** (size - 1)


def expectation(distribution: ILRDistribution, values: Tensor, points: Tensor, weight: float) -> Tensor:
    """E values ``(...)`` of values ``(P, ...)`` at the points of :func:`grid`, batch shape ``()``."""
    density = distribution.log_prob(points).exp()
    return torch.tensordot(density, values, 1) * weight


def family(name: str, size: int) -> ILRDistribution:
    """A distribution that treats no two entries alike, float64, batch shape ``()``."""
    ramp = torch.linspace(-0.9, 1.3, size, dtype=torch.float64)
    if name == "normal":
        return ILRNormal.from_logits(ramp, 0.5 + ramp.abs())
    if name == "low_rank":
        factor = torch.stack([ramp.sin(), ramp.cos()], dim=-1)
        return ILRNormal.from_factor(ramp, 0.5 + ramp.abs(), factor)
    if name == "concrete":
        return ILRConcrete(ramp, 0.8)
    if name == "dirichlet":
        return ILRDirichlet(1.6 + ramp)
    if name == "cost":
        return ILRSimplexCost(ramp, torch.tensor(3.0, dtype=torch.float64))
    assert name == "mixture"
    parts = [family(part, size) for part in ("normal", "concrete", "dirichlet", "cost")]
    return ILRMixture(torch.tensor([0.1, 0.2, 0.4, 0.3], dtype=torch.float64).log(), parts)


FAMILIES = ("normal", "low_rank", "concrete", "dirichlet", "cost", "mixture")
