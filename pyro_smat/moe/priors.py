r"""Priors over what a router decides by: logits around its own, prices on experts, balance, or a temperature.

The router's own logits l (T tokens, E experts) -> a distribution of the token's latent, which the model samples. A
prior is any callable ``(logits (..., E), router) -> distribution`` with ``latent`` "logits" or "log_temperature".
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_smat.moe.calls import Router

Latent = Literal["logits", "log_temperature"]


class RouterPrior(Protocol):
    """What the model asks of a prior."""

    latent: Latent

    def __call__(self, logits: Tensor, router: Router) -> dist.TorchDistribution: ...


class GaussianPrior:
    r""":math:`p(l) = N(l_{\mathrm{det}}, \sigma^2 I)`, around the router's own logits (VMoER).

    Args:
        scale: sigma > 0.
    """

    latent: Latent = "logits"

    def __init__(self, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a standard deviation > 0")
        self.scale = scale

    def mean(self, logits: Tensor, router: Router) -> Tensor:
        """The mean ``(..., E)``; the router's own logits ``(..., E)`` unless a subclass shifts them."""
        return logits

    def __call__(self, logits: Tensor, router: Router) -> dist.TorchDistribution:
        """Independent normals over ``(..., E)`` logits."""
        loc = self.mean(logits, router)
        return dist.Normal(loc, torch.full_like(loc, self.scale), validate_args=False).to_event(1)


class CostAwarePrior(GaussianPrior):
    r"""Experts have prices: :math:`p(l) \propto N(l; l_{\mathrm{det}}, \sigma^2 I) \exp(-\lambda\, c^\top l)`.

    Tilting a Gaussian shifts it: the prior is :math:`N(l_{\mathrm{det}} - \sigma^2 \lambda c, \sigma^2 I)`, exactly.

    Args:
        prices: ``(E,)`` for every router, or router name -> ``(E,)``; milliseconds, bytes to move, euros.
        rate: lambda >= 0, nats per unit of price and logit.
        scale: sigma.
    """

    def __init__(self, prices: Tensor | Mapping[str, Tensor], rate: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(scale)
        if not rate >= 0:
            raise ValueError(f"rate is {rate}; expected >= 0")
        self.prices, self.rate = prices, rate

    def mean(self, logits: Tensor, router: Router) -> Tensor:
        prices = self.prices if isinstance(self.prices, Tensor) else self.prices[router.name]
        if prices.shape != (router.num_experts,):
            raise ValueError(
                f"router {router.name!r} has {router.num_experts} experts; found prices {tuple(prices.shape)}"
            )
        return logits - self.scale**2 * self.rate * prices.to(logits)


class LoadBalancingPrior(GaussianPrior):
    r"""Busy experts are dear: a price of E (load - 1/E), the load being a running mean of softmax(logits).

    Args:
        rate: lambda >= 0.
        scale: sigma.
        decay: of the running mean, in [0, 1).
    """

    def __init__(self, rate: float = 1.0, scale: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(scale)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected in [0, 1)")
        self.rate, self.decay = rate, decay
        self.loads: dict[str, Tensor] = {}

    def observe(self, logits: Tensor, router: Router) -> None:
        """Update the load with the logits ``(..., E)`` of real tokens; for training loops to call."""
        load = logits.detach().softmax(-1).flatten(0, -2).mean(0)
        before = self.loads.get(router.name)
        self.loads[router.name] = load if before is None else self.decay * before + (1 - self.decay) * load

    def mean(self, logits: Tensor, router: Router) -> Tensor:
        load = self.loads.get(router.name)
        if load is None:
            return logits
        return logits - self.scale**2 * self.rate * (router.num_experts * load.to(logits) - 1)


class LogTemperaturePrior:
    r""":math:`\log T \sim N(0, \tau^2)` for every token: the router's logits are divided by T.

    Args:
        scale: tau > 0.
    """

    latent: Latent = "log_temperature"

    def __init__(self, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a standard deviation > 0")
        self.scale = scale

    def __call__(self, logits: Tensor, router: Router) -> dist.TorchDistribution:
        """A normal of batch shape ``(...)``."""
        zero = logits.new_zeros(logits.shape[:-1])
        return dist.Normal(zero, zero + self.scale, validate_args=False)


class PaperTemperaturePrior:
    """The penalty -log T of the paper's temperature sampling: an improper density proportional to T, without a maximum.

    Nothing but the likelihood holds the temperature down: mean temperatures of 3 to 47 came out of a small run where
    :class:`LogTemperaturePrior` stayed near 1. A point estimate is needed (``family="point_temperature"``).
    """

    latent: Latent = "log_temperature"

    def __init__(self) -> None:
        warnings.warn(
            "the penalty -log T has no minimum, and temperatures exploded with it; LogTemperaturePrior is proper",
            stacklevel=2,
        )

    def __call__(self, logits: Tensor, router: Router) -> dist.TorchDistribution:
        return _Improper(logits.new_zeros(logits.shape[:-1]))


class _Improper(dist.TorchDistribution):
    """log p(log T) = log T, up to a constant that is not there."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Improper:
        return _Improper(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError("the penalty -log T is no distribution and cannot be sampled")

    def log_prob(self, value: Tensor) -> Tensor:
        return value
