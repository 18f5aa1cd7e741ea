"""Logistic-normal prior: Gaussian ILR coordinates of the logits, softmax to the simplex."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from pyro_smat.models.priors.cost_weight import prices
from pyro_smat.models.priors.prior import RoutingPrior, SimplexPrior, vector
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRNormal


@register("prior", "logistic_normal")
class LogisticNormalPrior(SimplexPrior):
    """Prior over w (R sources) and alpha (M experts), both logistic-normal.

    Args:
        num_sources, num_experts, num_blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        loc: ``(R + M,)`` logit means; default 0, which treats all alike ("uniform").
        scale: standard deviation of every logit, > 0. About 2 is close to flat on a simplex of five; larger prefers
        its corners.

    Raises:
        ValueError: for shapes or a scale that make no distribution.

    Example:
        >>> LogisticNormalPrior.cost_aware(3, costs=[0.0, 1.0, 1.0], beta=2.0).loc
        tensor([-0., -2., -2.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        loc: Tensor | Sequence[float] | None = None,
        scale: float = 2.0,
    ) -> None:
        super().__init__(num_sources, num_experts, num_blocks=num_blocks)
        size = num_sources + num_experts
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a standard deviation > 0")
        self.register_buffer("loc", torch.zeros(size) if loc is None else vector(loc, size, "loc"))
        self.register_buffer("scale", torch.full((size,), float(scale)))

    @classmethod
    def member(cls, name: str) -> Callable[..., RoutingPrior]:
        members: dict[str, Callable[..., RoutingPrior]] = {"uniform": cls, "cost_aware": cls.cost_aware}
        return members[name]

    @classmethod
    def cost_aware(
        cls,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        costs: Tensor | Sequence[float] | None = None,
        beta: float = 1.0,
        scale: float = 2.0,
    ) -> Self:
        """Logit means -beta x cost: the median ratio of two weights falls by exp(-beta) for every unit of cost.

        Raises:
            ValueError: for a negative beta, or another number of costs than of sources and experts.
        """
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected >= 0 (0 treats all alike)")
        loc = -beta * prices(costs, num_sources + num_experts)
        return cls(num_sources, num_experts, num_blocks=num_blocks, loc=loc, scale=scale)

    def part_log_weights(self, part: slice) -> Tensor:
        return self.loc[part].log_softmax(-1)

    def part_distribution(self, part: slice) -> ILRNormal:
        return ILRNormal.from_logits(self.loc[part], self.scale[part])
