"""The negative log-likelihood of one query of an episode, however many it has."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.inference.objective.losses.episode_loss import Reduction
from pyro_smat.registry import register


@register("episode_loss", "mean_nll")
class MeanNLL:
    r""":math:`-\log p(y)` averaged over the points of an episode, in nats per query.

    Example:
        >>> import torch
        >>> MeanNLL()(torch.distributions.Bernoulli(0.25), torch.tensor(1.0), torch.tensor(True))
        tensor(1.3863)
    """

    reduction: Reduction = "mean"

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """Points ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool."""
        return -distribution.log_prob(labels)
