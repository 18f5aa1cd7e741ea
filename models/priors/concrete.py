"""Concrete prior: Gumbel-perturbed logits over a temperature, softmax to the simplex."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_smat.models.priors.prior import SimplexPrior, vector
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRConcrete


@register("prior", "concrete")
class ConcretePrior(SimplexPrior):
    """w = softmax((l + Gumbel) / T) over the R sources, alpha likewise over the M experts.

    Args:
        num_sources, num_experts, num_blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        logits: l, ``(R + M,)``; default 0, which treats all alike. The largest weight is entry k with probability
            softmax(l)_k, at every temperature.
        temperature: T > 0; below 1 the corners are likely, above 1 the middle. The KL of a
            :class:`~pyro_smat.guides.ConcreteGuide` is exact where its temperature is T, Monte Carlo elsewhere.

    Raises:
        ValueError: for shapes, logits or a temperature that make no distribution.

    Example:
        >>> prior = ConcretePrior(3, temperature=0.5)
        >>> prior().shape
        torch.Size([3])
    """

    logits: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        logits: Tensor | Sequence[float] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(num_sources, num_experts, num_blocks=num_blocks)
        size = num_sources + num_experts
        logits = torch.zeros(size) if logits is None else vector(logits, size, "logits")
        if not torch.isfinite(logits).all():
            raise ValueError(f"logits are {logits.tolist()}; expected finite numbers")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected > 0")
        self.register_buffer("logits", logits)
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def part_log_weights(self, part: slice) -> Tensor:
        return self.logits[part].log_softmax(-1)

    def part_distribution(self, part: slice) -> ILRConcrete:
        return ILRConcrete(self.logits[part], self.temperature)
