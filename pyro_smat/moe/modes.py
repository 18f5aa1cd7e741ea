r"""Routing functions from a posterior: what an attached network does at prediction.

posterior (anything with ``distribution(call)``) -> routing function -> ``with attachment.routing(function)``.

* :func:`mean_routing`: the posterior mean of the logits.
* :func:`expected_routing`: :math:`\log \frac1S \sum_s \mathrm{score}(l_s)` inside the router, one pass of the experts;
  for sigmoid routers the logit of the mean score. With common random numbers (the default) the S draws are the same
  standard normals for every token, so that the same hidden state is always routed alike.
* :func:`sampled_routing`: one draw a token; S such passes are trajectories (``prediction``).

What draws keeps nothing between runs: whenever a routing is opened its draws start from the seed anew, so that the same
functions give the same answers, however often they are used. Pass a ``torch.Generator`` for draws that go on.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_smat.moe.calls import Chosen, RouterCall, RoutingFunction
from pyro_smat.moe.selection import sample_without_replacement

NUM_SAMPLES = 35


class RoutingPosterior(Protocol):
    """What prediction asks of a guide, a prior or a baseline: a distribution of logits (or of log T) at a call."""

    def distribution(self, call: RouterCall) -> Any: ...


def check_posterior(posterior: object) -> None:
    """Raise TypeError for what has no ``distribution(call)``."""
    if not callable(getattr(posterior, "distribution", None)):
        raise TypeError(
            f"{type(posterior).__name__} is no posterior of routing; expected a TokenRoutingGuide, or something else "
            "with distribution(call): of a prior, baselines.PriorRouting(prior)"
        )


def mean_routing(posterior: RoutingPosterior) -> RoutingFunction:
    """Route by the posterior mean of the logits; of temperatures by the median T = exp(E[log T])."""
    check_posterior(posterior)

    def function(call: RouterCall) -> Tensor:
        distribution = posterior.distribution(call)
        return logits_of_latent(distribution.mean, call)

    return function


def expected_routing(
    posterior: RoutingPosterior, num_samples: int = NUM_SAMPLES, *, seed: int = 0, common: bool = True
) -> RoutingFunction:
    """Route by scores averaged over samples, in the router: one pass of the experts.

    Args:
        posterior: of the logits or log temperatures.
        num_samples: S.
        seed: of the draws, with the layer's number added.
        common: the same S standard normals (in pairs of opposite sign) for every token and call; otherwise each token
            has its own.

    Raises:
        ValueError: when S is no integer of at least 1.
    """
    check_posterior(posterior)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected an integer of at least 1")

    def function(call: RouterCall) -> Tensor:
        distribution = posterior.distribution(call)
        layer = call.router.index
        if common:
            generator = torch.Generator(device=call.logits.device).manual_seed(seed + layer)
        else:
            generator = call.generator((function, layer), seed + layer)
        noise = _noise(distribution, num_samples, generator, common)
        total: Tensor | None = None
        sigmoid = call.scoring == "sigmoid"
        for s in range(num_samples):  # one at a time: S x tokens x experts never stand in memory together
            logits = logits_of_latent(_draw(distribution, [eps[s] for eps in noise]), call)
            scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
            total = scores if total is None else total + scores
        assert total is not None
        mean = total / num_samples
        return torch.logit(mean, eps=1e-7) if sigmoid else mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    return function


def sampled_routing(
    posterior: RoutingPosterior, generator: torch.Generator | int = 0, *, selection: str = "top_k"
) -> RoutingFunction:
    """Route every token by a draw of its own.

    Args:
        posterior: of the logits or log temperatures.
        generator: a seed, from which every run starts anew; or a generator on the network's device, which goes on.
        selection: "top_k" of the drawn logits, or "sample": without replacement from their softmax.
    """
    check_posterior(posterior)
    if selection not in ("top_k", "sample"):
        raise ValueError(f"selection is {selection!r}; expected 'top_k' or 'sample'")

    def function(call: RouterCall) -> Tensor | Chosen:
        draws = call.generator(function, generator)
        distribution = posterior.distribution(call)
        noise = _noise(distribution, 1, draws, common=False)
        logits = logits_of_latent(_draw(distribution, [eps[0] for eps in noise]), call)
        if selection == "top_k":
            return logits
        if call.router.top_k is None:
            raise ValueError(f"router {call.router.name!r}: how many experts a token gets is not known")
        return Chosen(logits, sample_without_replacement(logits, call.router.top_k, generator=draws))

    return function


def logits_of_latent(latent: Tensor, call: RouterCall) -> Tensor:
    """Logits ``(..., E)`` from logits, or from log temperatures ``(...)``."""
    return latent if latent.shape == call.logits.shape else call.logits / latent.exp().unsqueeze(-1)


def samples(distribution: Any, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Draws ``(S, ..., E)`` of a posterior, without a copy of its covariance for every one of them.

    torch's own ``MultivariateNormal.rsample([S])`` multiplies S x tokens broadcast E x E matrices.
    """
    noise = _noise(distribution, num_samples, generator, common=False)
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc + torch.einsum("...ef,s...f->s...e", distribution.scale_tril, noise[0])
    return torch.stack([_draw(distribution, [eps[s] for eps in noise]) for s in range(num_samples)])


def _noise(distribution: Any, num_samples: int, generator: torch.Generator, common: bool) -> list[Tensor]:
    """Standard normals ``(S, ..., n)``; with ``common`` the batch dims have size 1 and signs come in pairs."""
    shape, base = distribution.batch_shape, distribution
    if isinstance(distribution, Independent):
        base = distribution.base_dist
    sizes = [tuple(distribution.event_shape)]
    if isinstance(base, LowRankMultivariateNormal):
        sizes.append((base.cov_factor.shape[-1],))
    mean = distribution.mean
    result = []
    for size in sizes:
        batch = (1,) * len(shape) if common else tuple(shape)
        half = (num_samples + 1) // 2 if common else num_samples
        eps = torch.randn(half, *batch, *size, dtype=mean.dtype, device=mean.device, generator=generator)
        result.append(torch.cat([eps, -eps])[:num_samples] if common else eps)
    return result


def _draw(distribution: Any, noise: list[Tensor]) -> Tensor:
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if isinstance(base, Normal):
        return base.loc + base.scale * noise[0]
    if isinstance(base, MultivariateNormal):
        eps = noise[0].expand(base.loc.shape)
        return base.loc + (base.scale_tril @ eps.unsqueeze(-1)).squeeze(-1)
    if isinstance(base, LowRankMultivariateNormal):
        factor = base.cov_factor
        shared = noise[1].expand(*base.loc.shape[:-1], factor.shape[-1])
        return base.loc + (factor @ shared.unsqueeze(-1)).squeeze(-1) + base.cov_diag.sqrt() * noise[0]
    if type(base).__name__ == "Delta":
        return base.v
    raise NotImplementedError(f"draws of a {type(base).__name__} are not known; expected a Gaussian or a Delta")
