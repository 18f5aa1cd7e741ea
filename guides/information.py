r"""What a batch of posteriors says of its episodes, cheap enough for every training step: is it alive, or collapsed?

A posterior that has collapsed to the prior says the same of every episode: its mutual information with the episode is
0. One that has collapsed to a point has no entropy and no variance left within an episode; one that has collapsed to
few routings uses less of the catalog than there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyro_smat.guides.posterior import RoutingPosterior


@dataclass(frozen=True)
class PosteriorInformation:
    """What training logs of a batch of posteriors, of any family, in nats.

    Attributes:
        entropy: mean entropy of the routing probabilities.
        variance: mean over episodes of the variance of the coefficients across draws, summed over coefficients.
        mutual_information: of episode and routing, at most log B; NaN of a point posterior.
        effective_routings: exp of the entropy of the batch's mean probabilities.
    """

    entropy: float
    variance: float
    mutual_information: float
    effective_routings: float


@torch.no_grad()
def posterior_information(
    posterior: RoutingPosterior, num_samples: int = 32, generator: torch.Generator | None = None
) -> PosteriorInformation:
    """Four numbers of the posteriors of B episodes, cheap enough for every training step.

    Args:
        posterior: of B episodes.
        num_samples: routings drawn of each, for the variance and where information is a Monte Carlo estimate.
        generator: of the draws; None is the global one.
    """
    coefficients = posterior.sample(num_samples, generator)  # (K, B, [L,] C)
    probabilities = posterior.routing_probabilities()
    information = posterior.mutual_information(num_samples, generator)
    entropy, variance, effective = torch.stack(  # together: a device is waited for once
        [
            posterior.entropy().mean(),
            coefficients.var(0).flatten(1).sum(-1).mean(),
            torch.special.entr(probabilities.mean(0)).sum().exp(),
        ]
    ).tolist()
    return PosteriorInformation(entropy, variance, information, effective)
