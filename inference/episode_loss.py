"""Episode losses: what of an observed site counts, point by point. The ELBO sums the points of an episode.

A hook takes the observed site of a model trace and the dims of the plates inside the episode plate, and returns a
tensor shaped like ``site["log_prob"]``. Write your own; ``summed_nll`` is the one with which rho = 1 is the ELBO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EpisodeLoss = Callable[[dict[str, Any], tuple[int, ...]], Tensor]


def summed_nll(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """-log p(y), in nats, scaled and masked as Pyro does."""
    return -site["log_prob"]


def mean_nll(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """-log p(y) divided by the number of observed points of the episode: nats a query, whatever the query count."""
    return _mean(-site["log_prob"], site["mask"], inner)


def expected_error(site: dict[str, Any], inner: tuple[int, ...]) -> Tensor:
    """1 - p(y), averaged over the observed points of the episode: the error rate of a randomised prediction, in [0, 1].

    It is linear in p, so its posterior expectation (Gibbs) is the loss of the ensemble that averages probabilities:
    unlike the NLL it does not push an ambiguous posterior towards one safe routing.
    """
    return _mean(-torch.expm1(site["unscaled_log_prob"]), site["mask"], inner, site["scale"])


def _mean(values: Tensor, mask: Tensor | bool | None, inner: tuple[int, ...], scale: Any = 1.0) -> Tensor:
    shown = (
        torch.ones_like(values) if mask is None or mask is True else torch.as_tensor(mask).to(values).expand_as(values)
    )
    count = shown.sum(inner, keepdim=True) if inner else shown  # a sum over no dims would be one over all
    return torch.where(shown > 0, values * scale, 0.0) / count.clamp(min=1)


EPISODE_LOSSES: dict[str, EpisodeLoss] = {"nll": summed_nll, "mean_nll": mean_nll, "expected_error": expected_error}
