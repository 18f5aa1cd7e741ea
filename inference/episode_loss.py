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
    log_prob = site["log_prob"]
    mask = site["mask"]
    ones = torch.ones_like(log_prob) if mask is None or mask is True else mask.to(log_prob).expand_as(log_prob)
    return -log_prob / ones.sum(inner, keepdim=True).clamp(min=1)


EPISODE_LOSSES: dict[str, EpisodeLoss] = {"nll": summed_nll, "mean_nll": mean_nll}
