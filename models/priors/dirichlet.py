"""Dirichlet prior on the weights of sources and of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.models.priors.prior import SimplexPrior
from pyro_smat.routing.distributions import ILRDirichlet


class DirichletPrior(SimplexPrior):
    """w ~ Dirichlet(a_1, ..., a_R), alpha ~ Dirichlet(a_{R+1}, ..., a_{R+M}).

    Args:
        sources, experts, blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        concentration: a > 0, a number or ``(R + M,)``; 1 is uniform on the simplex, less prefers its corners.

    Raises:
        ValueError: for shapes or a concentration that make no distribution.
    """

    concentration: Tensor

    def __init__(self, sources: int, experts: int = 0, concentration: float | Tensor = 1.0, blocks: int = 1) -> None:
        super().__init__(sources, experts, blocks)
        size = sources + experts
        if not isinstance(concentration, Tensor):
            concentration = torch.full((size,), float(concentration))
        if concentration.shape != (size,):
            raise ValueError(
                f"concentration has shape {tuple(concentration.shape)}; expected a number or ({size},), one a source "
                "and expert"
            )
        if not (concentration > 0).all():
            raise ValueError(f"concentration is {concentration.tolist()}; expected entries > 0")
        self.register_buffer("concentration", concentration)

    def part_distribution(self, part: slice) -> ILRDirichlet:
        return ILRDirichlet(self.concentration[part])
