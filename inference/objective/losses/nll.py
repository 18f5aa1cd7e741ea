"""The negative log-likelihood, summed: with it the objective at rho = 1 is the ELBO."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.registry import register


@register("episode_loss", "nll")
class NLL:
    r""":math:`-\log p(y)` in nats, summed over the points of an episode.

    Example:
        >>> import torch
        >>> NLL()(torch.distributions.Bernoulli(0.25), torch.tensor(1.0), torch.tensor(True))
        tensor(1.3863)
    """

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """Points ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool."""
        return -distribution.log_prob(labels)
