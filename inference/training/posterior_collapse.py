r"""Posterior spread: is the routing posterior alive, or has it collapsed to a point or to the prior?

A posterior that has collapsed to the prior says the same of every episode: its mutual information with the episode is
0. One that has collapsed to a point has no entropy and no variance left within an episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_smat.guides.posterior import RoutingPosterior


@dataclass(frozen=True)
class PosteriorSpread:
    r"""Three numbers of a batch of posteriors.

    Attributes:
        entropy: mean over episodes of the entropy of :meth:`RoutingPosterior.choice`, in nats.
        variance: mean over episodes of the variance of the coefficients across draws, summed over coefficients.
        mutual_information: between episode and routing, in nats, at most log B; NaN of a point posterior.
    """

    entropy: float
    variance: float
    mutual_information: float


@torch.no_grad()
def posterior_spread(
    posterior: RoutingPosterior, draws: int = 32, generator: torch.Generator | None = None
) -> PosteriorSpread:
    """The spread of the posteriors of B episodes; a Monte Carlo estimate from ``draws`` routings of each."""
    coefficients = posterior.sample(draws, generator)  # (K, B, [L,] C)
    return PosteriorSpread(
        entropy=float(posterior.entropy().mean()),
        variance=float(coefficients.var(0).flatten(1).sum(-1).mean()),
        mutual_information=posterior.mutual_information(draws, generator),
    )
