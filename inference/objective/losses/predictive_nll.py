"""The negative log-likelihood of the posterior predictive: of the average of probabilities, not the average of logs."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.inference.objective.losses.episode_loss import Reduction
from pyro_smat.registry import register

SMALLEST = 1e-12  # probability


@register("episode_loss", "predictive_nll", "ensemble_nll")
class PredictiveNLL:
    r""":math:`-\log E_q[p(y \mid c)]` averaged over the points of an episode, in nats per query.

    Never above the mean NLL (Jensen), and without its fear of ambiguity: where the support cannot tell two routings
    apart, splitting the mass between them is right. The expectation is over enumerated routings or vectorised
    particles.

    Example:
        >>> import torch
        >>> likelihood = torch.distributions.Bernoulli(torch.tensor([0.2, 0.6]))
        >>> p = PredictiveNLL()(likelihood, torch.ones(2), torch.tensor(True))
        >>> PredictiveNLL().of_expectation(p.mean())
        tensor(0.9163)
    """

    reduction: Reduction = "mean"

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """p(y) ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool."""
        return distribution.log_prob(labels).exp()

    def of_expectation(self, points: Tensor) -> Tensor:
        """The loss of every point ``(*b)``, from E_q[p(y)] ``(*b)``."""
        return -points.clamp(min=SMALLEST).log()
