"""Episode losses: what of an observed site counts, point by point. The ELBO sums the points of an episode.

A hook takes the observed site of a model trace and the dims of the plates inside the episode plate, and returns a
tensor shaped like ``site["log_prob"]``. Write your own; ``summed_nll`` is the one with which rho = 1 is the ELBO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

EpisodeLoss = Callable[[dict[str, Any], tuple[int, ...]], Tensor]


@runtime_checkable
class OfExpectation(Protocol):
    """A hook that is a function of the posterior expectation of its points, not their average."""

    def __call__(self, site: dict[str, Any], inner: tuple[int, ...]) -> Tensor: ...

    def of_expectation(self, values: Tensor, site: dict[str, Any], inner: tuple[int, ...]) -> Tensor: ...


def summed_nll(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """-log p(y), in nats, scaled and masked as Pyro does."""
    return -site["log_prob"]


def mean_nll(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """-log p(y) divided by the number of observed points of the episode: nats per query, whatever the query count."""
    return _mean(-site["log_prob"], site["mask"], inner)


def expected_error(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """1 - p(y), averaged over the observed points of the episode: the error rate of a randomised prediction, in [0, 1].

    It is linear in p, so its posterior expectation (Gibbs) is the loss of the ensemble that averages probabilities:
    unlike the NLL it does not push an ambiguous posterior towards one safe routing.
    """
    return _mean(-torch.expm1(site["unscaled_log_prob"]), site["mask"], inner, site["scale"])


class ClippedNLL:
    """min(-log p(y), c) / c, averaged over the observed points of the episode: a log-loss in [0, 1].

    Args:
        clip: c > 0, in nats.
    """

    def __init__(self, clip: float = 5.0) -> None:
        if not clip > 0:
            raise ValueError(f"clip is {clip}; expected a bound > 0, in nats")
        self.clip = clip

    def __call__(self, site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
        values = (-site["unscaled_log_prob"]).clamp(max=self.clip) / self.clip
        return _mean(values, site["mask"], inner, site["scale"])


def brier(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    r""":math:`\frac12 \sum_k (p_k - 1[y = k])^2`, averaged over the observed points of the episode, in [0, 1].

    Half of the Brier score (Brier 1950), of Categorical, OneHotCategorical and Bernoulli observations.

    Raises:
        ValueError: for another distribution, wrapped ones (``.to_event``, ``.mask``) among them.
    """
    fn, value = site["fn"], site["value"]
    if isinstance(fn, torch.distributions.Bernoulli):
        squares = (fn.probs - value).square()
    elif isinstance(fn, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
        index = value.argmax(-1) if isinstance(fn, torch.distributions.OneHotCategorical) else value.long()
        own = fn.probs.gather(-1, index.expand(fn.probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        squares = (1 - 2 * own + fn.probs.square().sum(-1)) / 2
    else:
        raise ValueError(
            f"episode_loss 'brier' at site {site['name']!r}: the Brier score of a {type(fn).__name__} is not known; "
            "expected Categorical, OneHotCategorical or Bernoulli observations, in plates and under poutine.mask"
        )
    return _mean(squares, site["mask"], inner, site["scale"])


class PredictiveNLL:
    r"""The mean NLL of the *ensemble* that averages probabilities, :math:`-\frac1n \sum_j \log E_q[p(y_j \mid c)]`.

    Never above the Gibbs loss (Jensen), and without its fear of ambiguity: where the support cannot tell two routings
    apart, splitting the mass between them is right. A hook with ``of_expectation`` is applied to the posterior
    expectation of its points, over enumerated routings or vectorised particles, instead of being averaged itself.
    """

    def __call__(self, site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
        """p(y), point by point."""
        return site["unscaled_log_prob"].exp()

    def of_expectation(self, values: Tensor, site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
        """From E_q[p(y)], with plates of size 1 where particles were, to the loss."""
        return _mean(-values.clamp(min=1e-12).log(), site["mask"], inner, site["scale"])


def loss_of_points(
    loss: EpisodeLoss, site: dict[str, Any], inner: tuple[int, ...], expectation: Callable[[Tensor], Tensor]
) -> Tensor:
    """The points of a site under a posterior: the hook, its expectation, and ``of_expectation`` if it has one."""
    points = expectation(loss(site, inner))
    return loss.of_expectation(points, site, inner) if isinstance(loss, OfExpectation) else points


def _mean(values: Tensor, mask: Tensor | bool | None, inner: tuple[int, ...], scale: Any = 1.0) -> Tensor:
    shown = torch.ones_like(values)
    if mask is not None and mask is not True:
        shown = shown * torch.as_tensor(mask).to(values)
    count = shown.sum(inner, keepdim=True) if inner else shown  # a sum over no dims would be one over all
    return torch.where(shown > 0, values * scale, 0.0) / count.clamp(min=1)


EPISODE_LOSSES: dict[str, EpisodeLoss] = {
    "nll": summed_nll,
    "mean_nll": mean_nll,
    "clipped_nll": ClippedNLL(),
    "brier": brier,
    "expected_error": expected_error,
    "predictive_nll": PredictiveNLL(),
}
