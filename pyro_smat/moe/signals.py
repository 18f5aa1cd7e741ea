r"""Signals of uncertainty from a routing posterior: per token and layer, then at one position, averaged over layers.

Higher means less certain, fixed beforehand: an orientation chosen on the data that it is then judged on is no evidence.
Which position is read matters (the last token of a prompt and the mean of its tokens can disagree completely), so it is
an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from pyro_smat.moe.calls import Chosen, RouterCall, RoutingFunction
from pyro_smat.moe.modes import RoutingPosterior, check_posterior, logits_of_latent, samples
from pyro_smat.moe.prediction import entropy
from pyro_smat.moe.surgery import Attachment

Signal = Callable[[RouterCall, Any], Tensor]


def gate_entropy(call: RouterCall, distribution: Any) -> Tensor:
    """H(softmax) of the mean logits ``(...)``; defined without a posterior too (None)."""
    logits = call.logits if distribution is None else logits_of_latent(distribution.mean, call)
    return entropy(logits.softmax(-1))


def logit_variance(call: RouterCall, distribution: Any) -> Tensor:
    """tr(Sigma) of the logits ``(...)``, analytic: the paper's inferred logit variance."""
    return distribution.variance.sum(-1)


def log_determinant(call: RouterCall, distribution: Any) -> Tensor:
    """log det Sigma of the logits ``(...)``."""
    if isinstance(distribution, MultivariateNormal):
        return 2 * distribution.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if isinstance(distribution, LowRankMultivariateNormal):
        return torch.logdet(distribution.covariance_matrix)
    return distribution.variance.log().sum(-1)


def temperature(call: RouterCall, distribution: Any) -> Tensor:
    """Median T = exp(E[log T]) ``(...)``."""
    return distribution.mean.exp()


def routing_information(call: RouterCall, distribution: Any, num_samples: int = 32) -> Tensor:
    """Mutual information of the first expert and the latent logits ``(...)``, by draws of a fixed seed."""
    generator = torch.Generator(device=call.logits.device).manual_seed(call.router.index)
    draws = samples(distribution, num_samples, generator=generator)
    scores = torch.stack([logits_of_latent(d, call).softmax(-1) for d in draws])
    return entropy(scores.mean(0)) - entropy(scores).mean(0)


@contextmanager
def watching(
    attachment: Attachment,
    posterior: RoutingPosterior | None,
    signals: Mapping[str, Signal],
    function: RoutingFunction | None = None,
) -> Iterator[dict[str, list[Tensor]]]:
    """Compute signals while a network runs.

    Args:
        attachment: of the network.
        posterior: on which the signals are computed; None for those that need none.
        signals: name -> signal.
        function: how the network is routed meanwhile.

    Yields:
        Name -> one ``(tokens,)`` tensor a layer, in order.
    """
    if posterior is not None:
        check_posterior(posterior)
    found: dict[str, list[Tensor]] = {name: [] for name in signals}

    def routed(call: RouterCall) -> Tensor | Chosen:
        distribution = None if posterior is None else posterior.distribution(call)
        for name, signal in signals.items():
            found[name].append(signal(call, distribution).detach().flatten())
        return call.logits if function is None else function(call)

    with attachment.routing(routed):
        yield found


def at_last_token(layers: list[Tensor], mask: Tensor) -> Tensor:
    """Mean over layers at the last real token of each sequence ``(B,)``; mask ``(B, L)``."""
    position = (mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    mean = torch.stack(layers).mean(0).view(mask.shape)
    return mean[torch.arange(len(mask), device=mask.device), position]


def over_tokens(layers: list[Tensor], mask: Tensor) -> Tensor:
    """Mean over layers and real tokens ``(B,)``; mask ``(B, L)``."""
    mean = torch.stack(layers).mean(0).view(mask.shape)
    return (mean * mask).sum(1) / mask.sum(1).clamp(min=1)
