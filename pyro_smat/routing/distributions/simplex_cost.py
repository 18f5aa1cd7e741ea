r"""ILRSimplexCost: weights that are costly are unlikely, p(w) \propto exp(-beta c . w) on the whole simplex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from pyro_smat.routing.coordinates import ilr_basis
from pyro_smat.routing.distributions.dirichlet import ILRDirichlet
from pyro_smat.routing.distributions.ilr import (
    ILRDistribution,
    check_size,
    log_jacobian,
    log_weights,
    standard_exponential,
)
from pyro_smat.routing.distributions.simplex_exponential import log_mean_exponential, saddle_point, tilted_mean


class ILRSimplexCost(ILRDistribution):
    r"""Density :math:`\exp(-\beta\, c \cdot w) / Z` with respect to the uniform distribution, Dirichlet(1, ..., 1).

    Args:
        costs: c, ``(n,)``, the price of a whole unit of every weight; any sign.
        beta: >= 0, 0-dim; how much log density one unit of cost takes away.

    Z, the mean and the expected cost are exact (:mod:`pyro_smat.routing.distributions.simplex_exponential`) and
    differentiable in beta; draws are exact and have no gradient. KL(Dirichlet || this) is exact.

    Raises:
        ValueError: for costs that are no vector of n >= 2 finite numbers, or a beta that is no finite number >= 0.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "costs": constraints.real_vector,
        "beta": constraints.nonnegative,
    }
    has_rsample = False

    def __init__(self, costs: Tensor, beta: Tensor | float) -> None:
        check_size("costs", costs)
        beta = torch.as_tensor(beta, dtype=costs.dtype, device=costs.device)
        if costs.ndim != 1 or not torch.isfinite(costs).all():
            raise ValueError(f"costs are {costs.tolist()}; expected a vector of finite numbers, one a weight")
        if beta.ndim or not (torch.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta is {beta.tolist()}; expected one finite number >= 0 (0 is the uniform density)")
        self.costs, self.beta = costs, beta
        super().__init__(torch.Size(), torch.Size([len(costs) - 1]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ILRSimplexCost:
        return self._expanded(batch_shape, costs=self.costs, beta=self.beta)

    def log_normaliser(self) -> Tensor:
        """ln Z, 0-dim."""
        return log_mean_exponential(-self.beta * self.costs)

    def expected_cost(self) -> Tensor:
        """E c . w = -d ln Z / d beta, 0-dim."""
        return self.costs @ tilted_mean(-self.beta * self.costs)

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """By rejection from normalised exponentials.

        With rates r_k = lambda + beta c_k, g_k / sum g has density proportional to (r . w)^-n. The target over it is
        proportional to (q e^{1 - q})^n <= 1, q = r . w / n, which is the probability to accept; lambda is the saddle
        point, at which the two densities touch at the target's mode and at least about 1 in sqrt(n) is accepted.
        """
        size = self.size
        excess = self.beta * (self.costs - self.costs.min())
        rates = saddle_point(-excess) + excess
        log_gamma = rates.new_zeros(math.prod(shape), size)
        pending = torch.arange(len(log_gamma), device=rates.device)
        while len(pending):
            drawn = standard_exponential((len(pending), size), rates, generator).log() - rates.log()
            q = drawn.softmax(-1) @ rates / size
            threshold = standard_exponential(q.shape, q, generator)
            accepted = size * (q.log() + 1.0 - q) > -threshold
            log_gamma[pending[accepted]] = drawn[accepted]
            pending = pending[~accepted]
        return log_gamma.view(*shape, size) @ ilr_basis(size, rates)

    def log_prob(self, ilr: Tensor) -> Tensor:
        """Log density of ILR coordinates ``(*s, *b, n - 1)``, ``(*s, *b)``."""
        log_w = log_weights(ilr)
        log_density = math.lgamma(self.size) - self.beta * (log_w.exp() @ self.costs) - self.log_normaliser()
        total = log_density + log_jacobian(log_w)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def mean_weights(self) -> Tensor:
        return tilted_mean(-self.beta * self.costs).expand(*self.batch_shape, self.size)

    def mode_weights(self) -> Tensor:
        """1 / (lambda + beta c_k), lambda so that they sum to 1."""
        x = -self.beta * self.costs
        gap = x.amax() - x
        point = saddle_point(x)
        inverse = 1.0 / (point + gap)
        point = point + (inverse.sum() - 1.0) / inverse.detach().square().sum()  # gives lambda its gradient
        return (1.0 / (point + gap)).expand(*self.batch_shape, self.size)


@register_kl(ILRDirichlet, ILRSimplexCost)
def _kl_dirichlet_simplex_cost(q: ILRDirichlet, p: ILRSimplexCost) -> Tensor:
    """KL(Dir(a) || Dir(1)) + beta c . a / a_0 + ln Z."""
    to_uniform = kl_divergence(q, ILRDirichlet(torch.ones_like(q.concentration)))
    kl = to_uniform + p.beta * (q.mean_weights() @ p.costs) + p.log_normaliser()
    return kl.expand(torch.broadcast_shapes(kl.shape, p.batch_shape))
