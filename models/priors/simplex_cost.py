r"""Cost-aware prior on the simplex: p(w, alpha) \propto exp(-beta (c_s . w + c_e . alpha))."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_smat.models.priors.cost_weight import CostWeight, prices, solve_beta
from pyro_smat.models.priors.prior import SimplexPrior
from pyro_smat.registry import register
from pyro_smat.routing.distributions import ILRSimplexCost


@register("prior", "simplex_cost")
class SimplexCostPrior(SimplexPrior):
    r""":math:`p(w, \alpha) \propto e^{-\beta\, c \cdot (w, \alpha)}` w.r.t. the uniform distribution on both simplices.

    Here a coefficient of 0.3 costs 0.3 of its price. :class:`~pyro_smat.models.priors.CostAwareCatalogPrior` charges
    the whole price of everything that is opened, and has mass on the corners: a different prior.

    Args:
        num_sources, num_experts, num_blocks: R, M and L of :class:`~pyro_smat.models.priors.SimplexPrior`.
        costs: c, ``(R + M,)``, the price of every source and expert, any sign; None: 0 for the fallback, 1 for every
        other.
        beta: >= 0, how much log density one unit of cost takes away; > 0 when learned.
        target_cost: instead of beta: the expected cost of a task's coefficients, for which beta is solved.
        learn: make beta a parameter (empirical Bayes).
        hyperprior: density of a learned beta, such as ``pyro.distributions.Gamma(2.0, 1.0)``, or its (shape, rate).

    Raises:
        ValueError: for shapes, costs or a beta that make no distribution, a target that no beta >= 0
            attains (naming the range that is attained), or a hyperprior on a fixed beta.

    Example:
        >>> prior = SimplexCostPrior(3, costs=[0.0, 1.0, 1.0], beta=2.0)
        >>> bool(prior.base_logits()[0] > prior.base_logits()[1])
        True
    """

    costs: Tensor

    def __init__(
        self,
        num_sources: int,
        num_experts: int = 0,
        *,
        num_blocks: int = 1,
        costs: Tensor | Sequence[float] | None = None,
        beta: float = 1.0,
        target_cost: float | None = None,
        learn: bool = False,
        hyperprior: TorchDistribution | Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_sources, num_experts, num_blocks=num_blocks)
        found = prices(costs, num_sources + num_experts)
        if target_cost is not None:
            beta = self._beta_of(target_cost, found.double())
        self.cost_weight = CostWeight(beta, learn=learn, hyperprior=hyperprior)
        self.register_buffer("costs", found)

    def _beta_of(self, target: float, costs: Tensor) -> float:
        def expected(beta: float) -> float:
            fixed = SimplexCostPrior(self.num_sources, self.num_experts, costs=costs, beta=beta)
            return fixed.double().expected_cost().item()

        parts = costs.split([self.num_sources, self.num_experts])
        return solve_beta(expected, sum(part.min().item() for part in parts if len(part)), target)

    @property
    def beta(self) -> Tensor:
        """0-dim."""
        return self.cost_weight.beta

    def part_distribution(self, part: slice) -> ILRSimplexCost:
        return ILRSimplexCost(self.costs[part], self.beta)

    def expected_cost(self) -> Tensor:
        """E c . (w, alpha), 0-dim, in units of the costs; a lone source or expert costs its whole price."""
        slices = (slice(0, self.num_sources), slice(self.num_sources, self.num_sources + self.num_experts))
        parts = [
            self.part_distribution(part).expected_cost() if len(self.costs[part]) > 1 else self.costs[part].sum()
            for part in slices
        ]
        return torch.stack(parts).sum()

    def hyper_log_densities(self) -> dict[str, Tensor]:
        return self.cost_weight.log_densities()
