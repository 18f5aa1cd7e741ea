"""Dirichlet prior on the weights of sources and of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_smat.models.priors.prior import RoutingPrior, SimplexPrior, vector
from pyro_smat.models.priors.simplex_cost import SimplexCostPrior
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRDirichlet


@register("prior", "dirichlet")
class DirichletPrior(SimplexPrior):
    """w ~ Dirichlet(a_1, ..., a_R), alpha ~ Dirichlet(a_{R+1}, ..., a_{R+M}).

    Args:
        num_sources, num_experts, num_blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        concentration: a > 0, a number or ``(R + M,)``; 1 is uniform on the simplex, less prefers its corners.

    Raises:
        ValueError: for shapes or a concentration that make no distribution.

    Example:
        >>> DirichletPrior(3, concentration=[2.0, 1.0, 1.0]).base_logits().exp()
        tensor([0.5000, 0.2500, 0.2500])
    """

    concentration: Tensor

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        concentration: float | Sequence[float] | Tensor = 1.0,
    ) -> None:
        super().__init__(num_sources, num_experts, num_blocks=num_blocks)
        size = num_sources + num_experts
        if isinstance(concentration, int | float):
            concentration = torch.full((size,), float(concentration))
        concentration = vector(concentration, size, "concentrations")
        if not (concentration > 0).all():
            raise ValueError(f"concentration is {concentration.tolist()}; expected entries > 0")
        self.register_buffer("concentration", concentration)

    @classmethod
    def member(cls, name: str) -> Callable[..., RoutingPrior]:
        """Cost-aware is a :class:`~pyro_smat.models.priors.SimplexCostPrior`: the KL of a Dirichlet to it is exact."""
        return {"uniform": cls, "cost_aware": SimplexCostPrior}[name]

    def part_distribution(self, part: slice) -> ILRDirichlet:
        return ILRDirichlet(self.concentration[part])
