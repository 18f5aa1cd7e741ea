r"""ILRDirichlet: the Dirichlet distribution, in ILR coordinates.

.. math:: \ln p(u) = \ln\Gamma(a_0) - \sum_k \ln\Gamma(a_k) + \sum_k a_k \ln w_k + \tfrac12 \ln n, \quad w = softmax(Vu)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints, register_kl

from pyro_smat.routing.coordinates import ilr_basis
from pyro_smat.routing.distributions.ilr import ILRDistribution, check_size, log_weights, standard_exponential


class ILRDirichlet(ILRDistribution):
    """w ~ Dirichlet(a).

    Args:
        concentration: a > 0, ``(*b, n)``.

    The KL of two is exact. Draws are made in log space, so that weights far below the smallest float keep their
    logarithm, at concentrations of 0.01 as well.

    Raises:
        ValueError: for a single entry or a concentration that is not > 0.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "concentration": constraints.independent(constraints.positive, 1)
    }

    def __init__(self, concentration: Tensor) -> None:
        check_size("concentration", concentration)
        if not (concentration > 0).all():
            raise ValueError(f"concentration has entries down to {concentration.min().item():g}; expected > 0")
        self.concentration = concentration
        size = concentration.shape[-1]
        super().__init__(concentration.shape[:-1], torch.Size([size - 1]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ILRDirichlet:
        return self._expanded(batch_shape, concentration=self.concentration.expand(*batch_shape, self.size))

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        a = self.concentration.expand(*shape, self.size)
        # Gamma(a) = Gamma(a + 1) U^(1 / a); the first factor has torch's implicit gradient, the second a plain one.
        log_gamma = torch._standard_gamma(a + 1, generator).log()
        return (log_gamma - standard_exponential(a.shape, a, generator) / a) @ ilr_basis(self.size, a)

    def log_prob(self, ilr: Tensor) -> Tensor:
        """Log density of ILR coordinates ``(*s, *b, n - 1)``, ``(*s, *b)``."""
        a = self.concentration
        kernel = (a * log_weights(ilr)).sum(-1) + 0.5 * math.log(self.size)
        return kernel + a.sum(-1).lgamma() - a.lgamma().sum(-1)

    def mean_weights(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def mode_weights(self) -> Tensor:
        """a / a_0, the mean: in ILR coordinates a mode exists at every concentration."""
        return self.mean_weights()


@register_kl(ILRDirichlet, ILRDirichlet)
def _kl_dirichlet(q: ILRDirichlet, p: ILRDirichlet) -> Tensor:
    a, b = q.concentration, p.concentration
    a_total, b_total = a.sum(-1), b.sum(-1)
    normaliser = a_total.lgamma() - a.lgamma().sum(-1) - b_total.lgamma() + b.lgamma().sum(-1)
    return normaliser + ((a - b) * (a.digamma() - a_total.digamma().unsqueeze(-1))).sum(-1)
