"""The log-loss in [0, 1]: bounded, so that one impossible label does not take the whole gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.registry import register


@register("episode_loss", "clipped_nll")
@dataclass(frozen=True, kw_only=True)
class ClippedNLL:
    r""":math:`\min(-\log p(y),\, c) / c` averaged over the points of an episode.

    Args:
        clip: c > 0, in nats.

    Raises:
        ValueError: for a clip that is not > 0.

    Example:
        >>> import torch
        >>> ClippedNLL(clip=2.0)(torch.distributions.Bernoulli(0.25), torch.tensor(1.0), torch.tensor(True))
        tensor(0.6931)
    """

    clip: float = 5.0
    reduction = "mean"

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a bound > 0, in nats")

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor:
        """Points ``(*b)`` from a distribution of batch shape ``(*b)``, labels ``(*b, *event)``, mask ``(*b)`` bool."""
        return (-distribution.log_prob(labels)).clamp(max=self.clip) / self.clip
