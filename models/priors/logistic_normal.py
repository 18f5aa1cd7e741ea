"""Logistic-normal prior: Gaussian ILR coordinates of the logits, softmax to the simplex."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from pyro_smat.models.priors.prior import SimplexPrior
from pyro_smat.routing.distributions import ILRNormal


class LogisticNormalPrior(SimplexPrior):
    """Prior over w (R sources) and alpha (M experts), both logistic-normal.

    Args:
        sources, experts, blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        loc: ``(R + M,)`` logit means; default 0, which treats all alike ("uniform").
        scale: standard deviation of every logit, > 0. About 2 is close to flat on a simplex of five; larger prefers
        its corners.

    Raises:
        ValueError: for shapes or a scale that make no distribution.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, sources: int, experts: int = 0, loc: Tensor | None = None, scale: float = 2.0, blocks: int = 1
    ) -> None:
        super().__init__(sources, experts, blocks)
        size = sources + experts
        if not scale > 0:
            raise ValueError(f"scale is {scale}; expected a standard deviation > 0")
        loc = torch.zeros(size) if loc is None else loc
        if loc.shape != (size,):
            raise ValueError(f"loc has shape {tuple(loc.shape)}; expected ({size},): one logit a source and expert")
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.full((size,), float(scale)))

    @classmethod
    def cost_aware(
        cls, sources: int, experts: int, costs: Tensor, beta: float, scale: float = 2.0, blocks: int = 1
    ) -> Self:
        """Logit means -beta x cost: the median ratio of two weights falls by exp(-beta) for every unit of cost.

        Raises:
            ValueError: for a negative beta, or another number of costs than of sources and experts.
        """
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected >= 0 (0 treats all alike)")
        if costs.shape != (sources + experts,):
            raise ValueError(
                f"costs have shape {tuple(costs.shape)}; expected ({sources + experts},), one a source and expert"
            )
        return cls(sources, experts, -beta * costs, scale, blocks)

    def part_log_weights(self, part: slice) -> Tensor:
        return self.loc[part].log_softmax(-1)

    def part_distribution(self, part: slice) -> ILRNormal:
        return ILRNormal.from_logits(self.loc[part], self.scale[part])
