"""The Brier score (Brier 1950), halved so that it is in [0, 1]."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical

from pyro_smat.inference.objective.losses.episode_loss import Reduction
from pyro_smat.registry import register


@register("episode_loss", "brier")
class Brier:
    r""":math:`\frac12 \sum_k (p_k - 1[y = k])^2` averaged over the points of an episode, in [0, 1].

    Of Categorical, OneHotCategorical and Bernoulli observations.

    Example:
        >>> import torch
        >>> Brier()(Categorical(torch.tensor([0.25, 0.75])), torch.tensor(0), torch.tensor(True))
        tensor(0.5625)
    """

    reduction: Reduction = "mean"

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """Points ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool.

        Raises:
            ValueError: for another distribution, wrapped ones (``.to_event``, ``.mask``) among them.
        """
        if isinstance(distribution, Bernoulli):
            return (distribution.probs - labels).square()
        if not isinstance(distribution, Categorical | OneHotCategorical):
            raise ValueError(
                f"the Brier score of a {type(distribution).__name__} is not known; expected Categorical, "
                "OneHotCategorical or Bernoulli observations, in plates and under poutine.mask"
            )
        index = labels.argmax(-1) if isinstance(distribution, OneHotCategorical) else labels.long()
        probs = distribution.probs
        own = probs.gather(-1, index.expand(probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return (1 - 2 * own + probs.square().sum(-1)) / 2
