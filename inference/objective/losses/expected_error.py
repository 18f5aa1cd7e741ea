"""The error rate of a randomised prediction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.inference.objective.losses.episode_loss import Reduction
from pyro_smat.registry import register


@register("episode_loss", "expected_error")
class ExpectedError:
    """:math:`1 - p(y)` averaged over the points of an episode, in [0, 1].

    It is linear in p: its posterior expectation is the loss of the posterior predictive, so that unlike the NLL it
    does not push an ambiguous posterior towards one safe routing.

    Example:
        >>> import torch
        >>> ExpectedError()(torch.distributions.Bernoulli(0.25), torch.tensor(1.0), torch.tensor(True))
        tensor(0.7500)
    """

    reduction: Reduction = "mean"

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """Points ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool."""
        return -torch.expm1(distribution.log_prob(labels))
