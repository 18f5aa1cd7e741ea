r"""ILRConcrete: the Concrete (Gumbel-softmax) distribution, in ILR coordinates.

.. math:: u = V'(l + G) / T, \qquad
          \ln p(u) = \ln (n-1)! + (n-1) \ln T + \tfrac12 \ln n + \sum_k z_k - n \ln\sum_k e^{z_k}, \quad z = l - T V u

(Maddison, Mnih and Teh 2017, in the coordinates used here). Nothing is exponentiated on the way to u and back, so low
temperatures, at which relaxed one-hot vectors round to 0, stay finite with their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn import functional as F

from pyro_smat.routing.coordinates import ilr_basis
from pyro_smat.routing.distributions.ilr import ILRDistribution, check_size, standard_exponential
from pyro_smat.routing.distributions.quasi_random import uniform_points

EULER = 0.5772156649015329
STEP = 0.3  # of the quadrature: exact to rounding up to hundreds of equal logits


class ILRConcrete(ILRDistribution):
    """Gumbel-perturbed logits over a temperature.

    Args:
        logits: l, ``(*b, n)``; a common shift of them means nothing.
        temperature: T > 0; a number or ``(*b)``, one for every distribution of the batch.

    The KL of two at equal temperatures is exact and does not depend on the temperature; it is never below the
    categorical KL of the same logits.

    Raises:
        ValueError: for a single logit, a temperature that is not > 0 or not of a batch shape.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "temperature": constraints.positive,
    }

    def __init__(self, logits: Tensor, temperature: Tensor | float) -> None:
        check_size("logits", logits)
        temperature = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
        if temperature.ndim > logits.ndim - 1:
            raise ValueError(
                f"temperature has shape {tuple(temperature.shape)} and logits {tuple(logits.shape)}; expected one "
                "temperature for every distribution, (*b) for logits (*b, n)"
            )
        if not (temperature > 0).all():
            raise ValueError(f"temperature has entries down to {temperature.min().item():g}; expected > 0")
        batch_shape = torch.broadcast_shapes(logits.shape[:-1], temperature.shape)
        self.logits = logits.expand(*batch_shape, logits.shape[-1])
        self.temperature = temperature.expand(batch_shape)
        super().__init__(batch_shape, torch.Size([logits.shape[-1] - 1]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> ILRConcrete:
        return self._expanded(
            batch_shape,
            logits=self.logits.expand(*batch_shape, self.size),
            temperature=self.temperature.expand(batch_shape),
        )

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        gumbel = -standard_exponential((*shape, self.size), self.logits, generator).log()
        return (self.logits + gumbel) @ ilr_basis(self.size, self.logits) / self.temperature.unsqueeze(-1)

    def log_prob(self, ilr: Tensor) -> Tensor:
        """Log density of ILR coordinates ``(*s, *b, n - 1)``, ``(*s, *b)``."""
        scaled = self.temperature.unsqueeze(-1) * (ilr @ ilr_basis(self.size, ilr).mT)
        constant = math.lgamma(self.size) + 0.5 * math.log(self.size)
        return (self.logits - scaled).log_softmax(-1).sum(-1) + (self.size - 1) * self.temperature.log() + constant

    def mean_weights(self) -> Tensor:
        """By 512 quasi-random draws, the same ones every time."""
        gumbel = -(-uniform_points(self.size).log()).log().to(self.logits)
        gumbel = gumbel.view(-1, *(1,) * len(self.batch_shape), self.size)
        return ((self.logits + gumbel) / self.temperature.unsqueeze(-1)).softmax(-1).mean(0)

    def mode_weights(self) -> Tensor:
        """softmax(l / T)."""
        return (self.logits / self.temperature.unsqueeze(-1)).softmax(-1)


@register_kl(ILRConcrete, ILRConcrete)
def _kl_concrete(q: ILRConcrete, p: ILRConcrete) -> Tensor:
    r"""KL = -sum ln r_k + n (E ln sum_k r_k E_k - psi(n)), r = softmax(l_p) / softmax(l_q), E_k iid Exp(1)."""
    if (q.temperature != p.temperature).any():
        raise NotImplementedError("KL of two Concrete distributions has a closed form at equal temperatures only")
    log_ratio = p.logits.log_softmax(-1) - q.logits.log_softmax(-1)
    digamma = -EULER + sum(1 / k for k in range(1, q.size))
    return -log_ratio.sum(-1) + q.size * (mean_log_hyperexponential(log_ratio) - digamma)


def mean_log_hyperexponential(log_rates: Tensor) -> Tensor:
    r"""E ln(sum_k r_k E_k), E_k iid Exp(1), ``(*b)`` from ln r ``(*b, n)``: exact to rounding and smooth, ties too.

    With Frullani's integral for the logarithm and E ln E_1 = -gamma,

    .. math:: E \ln \sum_k r_k E_k = -\gamma + \int \Big(\frac1{1+e^s} - \prod_k \frac1{1 + r_k e^s}\Big) ds .

    The integrand is analytic in the strip of half-width pi and falls like e^{-|s|} once max r = 1, so the trapezoid
    rule of step h errs by about e^{-2 pi^2 / h} and the end points by rounding.
    """
    largest = log_rates.amax(-1, keepdim=True).detach()
    reach = 4.0 - math.log(torch.finfo(log_rates.dtype).eps)
    s = torch.arange(-reach, reach, STEP, dtype=log_rates.dtype, device=log_rates.device)
    log_product = F.softplus((log_rates - largest).unsqueeze(-2) + s.unsqueeze(-1)).sum(-1) - F.softplus(s)
    return largest.squeeze(-1) - EULER - STEP * (torch.sigmoid(-s) * torch.expm1(-log_product)).sum(-1)
