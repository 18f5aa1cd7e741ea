r"""Integrals of exp(x . w) over the simplex: the normaliser and the mean of linear-cost priors.

With w ~ Dirichlet(1, ..., 1), Z(x) = E exp(x . w) is (n - 1)! times the divided difference of exp at x_1, ..., x_n
(Hermite-Genocchi), and that is a contour integral around the nodes:

.. math:: Z(x) = \frac{(n-1)!}{2 \pi i} \oint e^{\varphi(z)} dz, \qquad \varphi(z) = z - \sum_k \ln(z - x_k).

The contour used is the parabola that follows the steepest descent from the saddle point lambda > max x, where
sum_k 1 / (lambda - x_k) = 1. The integrand falls like a Gaussian along it, so 64 trapezoid nodes give full float64
precision at any spread of x, ties included, where the sum over distinct nodes cancels and a matrix exponential loses
the digits of its corner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_smat.float64 import in_float64

NODES = 64
REACH = 11.0  # of the contour, in deviations of the Gaussian: the integrand falls like exp(-t^2 / 3)


def saddle_point(x: Tensor) -> Tensor:
    """lambda - max x, in [1, n], with sum_k 1 / (lambda - x_k) = 1; ``(*b, 1)`` from x ``(*b, n)``, no gradient.

    At it 1 / (lambda - x_k) are the weights where exp(x . w) prod w is largest.
    """
    with torch.no_grad():
        gap = x.amax(-1, keepdim=True) - x
        point = torch.ones_like(gap[..., :1])
        for _ in range(30):  # Newton's method on a convex decreasing function, from its left: no overshoot
            inverse = 1.0 / (point + gap)
            point = point + (inverse.sum(-1, keepdim=True) - 1.0) / inverse.square().sum(-1, keepdim=True)
        return point


def log_mean_exponential(x: Tensor) -> Tensor:
    """ln E exp(x . w), w ~ Dirichlet(1, ..., 1), ``(*b)`` from x ``(*b, n)``; differentiable, accurate to rounding."""
    integrand, _, height = _along_contour(in_float64(x))
    size = x.shape[-1]
    return (math.lgamma(size) + height + (integrand.real.sum(-1) / math.pi).log()).to(x)


def tilted_mean(x: Tensor) -> Tensor:
    """The mean of w ``(*b, n)`` under a density proportional to exp(x . w) on the simplex: the gradient of ln Z."""
    integrand, resolvent, _ = _along_contour(in_float64(x))
    moments = (integrand.unsqueeze(-1) * resolvent).real.sum(-2)
    return (moments / integrand.real.sum(-1, keepdim=True)).to(x)


def _along_contour(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted integrand ``(*b, NODES)`` over e^height, 1 / (z - x_k) ``(*b, NODES, n)`` there, and height ``(*b)``."""
    point = saddle_point(x)
    top = x.detach().amax(-1, keepdim=True)
    mode = 1.0 / (point + top - x.detach())
    curvature = mode.square().sum(-1, keepdim=True)
    bend = mode.pow(3).sum(-1, keepdim=True) / (3.0 * curvature)
    step = REACH / NODES
    t = torch.arange(NODES, dtype=x.dtype, device=x.device) * step / curvature.sqrt()
    from_top = torch.complex(point - bend * t.square(), t)  # z - max x, the upper half of the parabola
    difference = from_top.unsqueeze(-1) + (top - x).unsqueeze(-2)  # z - x_k
    height = top.squeeze(-1) + (point.squeeze(-1) + mode.log().sum(-1))
    exponent = from_top + top - difference.log().sum(-1) - height.unsqueeze(-1)
    slope = torch.complex(torch.ones_like(t), 2.0 * bend * t)  # dz / dt over i
    weight = torch.full_like(t, step)
    weight[..., 0] = 0.5 * step  # the other half of the contour is the complex conjugate of this one
    return exponent.exp() * slope * weight / curvature.sqrt(), 1.0 / difference, height
