r"""What variational routing is to be compared with, in the same frame: posteriors and routing functions.

The deterministic router is ``function=None``, a deterministic fine-tune of equal budget the guide's family "point", an
ensemble of routers several such guides given to ``trajectories``; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.moe.calls import RouterCall, RoutingFunction
from pyro_smat.moe.priors import RouterPrior
from pyro_smat.moe.surgery import Attachment


@dataclass(frozen=True)
class PriorRouting:
    """The prior as posterior: nothing learned. As good as learned ones in a small run, so it belongs in every table."""

    prior: RouterPrior

    def distribution(self, call: RouterCall) -> Any:
        return self.prior(call.logits, call.router)


@dataclass(frozen=True)
class FixedTemperature:
    """Logits / T with one T for all; with ``sampled_routing(..., selection="sample")`` experts are drawn from them."""

    temperature: float

    def distribution(self, call: RouterCall) -> Any:
        return dist.Delta(call.logits / self.temperature, event_dim=1)


def dropout_routing(rate: float = 0.05, generator: torch.Generator | int = 0) -> RoutingFunction:
    """Dropout on what the router sees, in evaluation too (Monte Carlo dropout on the router alone).

    Args:
        rate: share of the hidden units that are dropped.
        generator: of the masks: a seed, from which every run starts anew, or a generator, which goes on.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; expected in [0, 1)")

    def function(call: RouterCall) -> Tensor:
        draws = call.generator(function, generator)
        kept = torch.rand(call.hidden.shape, device=call.hidden.device, generator=draws) >= rate
        return call.logits_of(call.hidden * kept.to(call.hidden.dtype) / (1 - rate))

    return function


def fit_output_temperature(logits: Tensor, labels: Tensor, iterations: int = 60) -> float:
    """The T > 0 that minimises the NLL of softmax(logits / T) on validation data (Guo et al. 2017); convex in 1 / T.

    Args:
        logits: ``(n, C)``; of a mixture, the logarithms of its probabilities.
        labels: ``(n,)``.
        iterations: halvings of the interval of 1 / T, which is [0.001, 1000] at first, on a logarithmic scale.
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        probabilities = (logits * inverse).softmax(-1)
        expected = (probabilities * logits).sum(-1)
        own = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return float((expected - own).mean())

    low, high = 1e-3, 1e3
    for _ in range(iterations):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


@dataclass(frozen=True)
class RouterLaplace:
    r"""A diagonal Laplace approximation on the routers' gate matrices.

    .. math:: W_{eh} \sim N\big(\hat W_{eh},\ (N F_{eh} + \lambda)^{-1}\big)

    F is the mean over sequences of the squared gradient of their log-likelihood. On the logits of one token that is
    :math:`N(\hat W u, \mathrm{diag}_e \sum_h u_h^2 / (N F_{eh} + \lambda))`.

    Attributes:
        variances: router name -> ``(E, H)``.
    """

    variances: Mapping[str, Tensor]

    def distribution(self, call: RouterCall) -> Any:
        """Marginals of the logits of every token."""
        variance = F.linear(
            call.hidden.to(call.logits.dtype).square(), self.variances[call.router.name].to(call.logits)
        )
        return dist.Normal(call.logits, variance.sqrt().clamp(min=1e-12), validate_args=False).to_event(1)

    def member(self, seed: int) -> RoutingFunction:
        """Routing by one drawn matrix a router, the same for all tokens: a member for ``trajectories``."""

        def function(call: RouterCall) -> Tensor:
            variance = self.variances[call.router.name].to(call.logits)
            generator = torch.Generator(device=variance.device).manual_seed(seed * 100_003 + call.router.index)
            noise = torch.randn(variance.shape, generator=generator, device=variance.device, dtype=variance.dtype)
            return call.logits + F.linear(call.hidden.to(call.logits.dtype), noise * variance.sqrt())

        return function


def fit_router_laplace(
    attachment: Attachment,
    batches: Iterable[Any],
    log_likelihood: Callable[[Any], Tensor],
    *,
    prior_precision: float = 1.0,
) -> RouterLaplace:
    """Accumulate squared gradients of every router's gate, sequence by sequence, in one backward pass a batch.

    Args:
        attachment: of the network; its parameters stay as they are.
        batches: of training data.
        log_likelihood: runs the network on a batch and returns the log-likelihood of every sequence ``(B,)``. Tokens of
            different sequences must not meet in the network.
        prior_precision: lambda.

    Raises:
        ValueError: when there are no batches.
    """
    squares: dict[str, Tensor] = {}
    for batch in batches:
        seen: list[tuple[RouterCall, Tensor]] = []

        def watch(call: RouterCall, seen: list[tuple[RouterCall, Tensor]] = seen) -> Tensor:
            leaf = call.logits if call.logits.requires_grad else call.logits.detach().requires_grad_()
            seen.append((call, leaf))
            return leaf

        with attachment.routing(watch), torch.enable_grad():
            values = log_likelihood(batch)
            gradients = torch.autograd.grad(values.sum(), [leaf for _, leaf in seen])
        for (call, _), gradient in zip(seen, gradients, strict=True):
            hidden = call.hidden.detach().to(gradient.dtype)
            g = gradient.reshape(len(values), -1, gradient.shape[-1])
            u = hidden.reshape(len(values), -1, hidden.shape[-1])
            square = torch.einsum("ble,blh->beh", g, u).square().sum(0)
            squares[call.router.name] = squares.get(call.router.name, 0) + square
    if not squares:
        raise ValueError("no batches; expected training data to measure the curvature on")
    return RouterLaplace({name: 1 / (square + prior_precision) for name, square in squares.items()})
