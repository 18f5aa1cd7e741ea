"""Draws of the latent sites of a posterior or a prior from a generator of one's own; Pyro has only the global one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.distributions import Delta, Independent, TorchDistribution
from torch import Tensor


def draw_sites(
    sites: Mapping[str, TorchDistribution], count: int, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """A value ``(K, B, 1, *event)`` for every site of a posterior, with a generator of its own."""
    return {name: draw_site(distribution, count, generator) for name, distribution in sites.items()}


def draw_site(distribution: TorchDistribution, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` values ``(K, *batch, *event)`` of one site; equal seeds of the generator give equal values."""
    if isinstance(distribution, Delta):
        return distribution.v.expand(count, *distribution.v.shape)
    if isinstance(distribution, torch.distributions.OneHotCategorical):
        probabilities = distribution.probs
        rows = torch.multinomial(probabilities.flatten(0, -2), count, replacement=True, generator=generator)
        size = probabilities.shape[-1]
        return torch.nn.functional.one_hot(rows.mT, size).reshape(count, *probabilities.shape).to(probabilities)
    if isinstance(distribution, Independent):  # blocks
        return draw_site(distribution.base_dist, count, generator)
    return distribution.sample((count,), generator)
