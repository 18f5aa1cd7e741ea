r"""Cost-aware prior on the simplex: p(w, alpha) \propto exp(-beta (c_s . w + c_e . alpha))."""

from __future__ import annotations

from typing import Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_smat.models.priors.cost_weight import CostWeight, solve_beta
from pyro_smat.models.priors.prior import SimplexPrior
from pyro_smat.routing.distributions import ILRSimplexCost


class SimplexCostPrior(SimplexPrior):
    r""":math:`p(w, \alpha) \propto e^{-\beta\, c \cdot (w, \alpha)}` w.r.t. the uniform distribution on both simplices.

    Here a coefficient of 0.3 costs 0.3 of its price. :class:`~pyro_smat.models.priors.CostAwareCatalogPrior` charges
    the whole price of everything that is opened, and has mass on the corners: a different prior.

    Args:
        sources, experts, blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        costs: c, ``(R + M,)``, the price of every source and expert; any sign.
        beta: >= 0, how much log density one unit of cost takes away; > 0 when learned.
        learn_beta: make beta a parameter (empirical Bayes).
        hyperprior: density of a learned beta, such as ``pyro.distributions.Gamma(2.0, 1.0)``.

    Raises:
        ValueError: for shapes, costs or a beta that make no distribution, or a hyperprior on a fixed beta.
    """

    costs: Tensor

    def __init__(
        self,
        sources: int,
        experts: int,
        costs: Tensor,
        beta: float,
        blocks: int = 1,
        learn_beta: bool = False,
        hyperprior: TorchDistribution | None = None,
    ) -> None:
        super().__init__(sources, experts, blocks)
        check_costs(costs, sources + experts)
        self.cost_weight = CostWeight(beta, learn_beta, hyperprior)
        self.register_buffer("costs", costs)

    @classmethod
    def at_expected_cost(
        cls,
        sources: int,
        experts: int,
        costs: Tensor,
        target: float,
        blocks: int = 1,
        learn_beta: bool = False,
        hyperprior: TorchDistribution | None = None,
    ) -> Self:
        """The prior whose beta makes the expected cost of a task's coefficients ``target``.

        Raises:
            ValueError: for a target that no beta >= 0 attains, naming the range that is attained.
        """
        check_costs(costs, sources + experts)

        def expected(beta: float) -> float:
            return cls(sources, experts, costs.double(), beta).double().expected_cost().item()

        cheapest = sum(part.min().item() for part in costs.split([sources, experts]) if len(part))
        beta = solve_beta(expected, cheapest, target)
        return cls(sources, experts, costs, beta, blocks, learn_beta, hyperprior)

    @property
    def beta(self) -> Tensor:
        """0-dim."""
        return self.cost_weight.beta

    def part_distribution(self, part: slice) -> ILRSimplexCost:
        return ILRSimplexCost(self.costs[part], self.beta)

    def expected_cost(self) -> Tensor:
        """E c . (w, alpha), 0-dim, in units of the costs; a lone source or expert costs its whole price."""
        slices = (slice(0, self.sources), slice(self.sources, self.sources + self.experts))
        parts = [
            self.part_distribution(part).expected_cost() if len(self.costs[part]) > 1 else self.costs[part].sum()
            for part in slices
        ]
        return torch.stack(parts).sum()

    def hyper_log_densities(self) -> dict[str, Tensor]:
        return self.cost_weight.log_densities()


def check_costs(costs: Tensor, size: int) -> None:
    """Raises ValueError unless ``costs`` are ``(size,)`` finite numbers."""
    if costs.shape != (size,):
        raise ValueError(f"costs have shape {tuple(costs.shape)}; expected ({size},), one for each source and expert")
    if not torch.isfinite(costs).all():
        raise ValueError(f"costs are {costs.tolist()}; expected finite numbers (leave out what must not be used)")
