r"""CostAwareCatalogPrior: p(A) \propto exp(-beta cost(A)) over a catalog of routings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_smat.models.priors.catalog import CatalogPrior
from pyro_smat.models.priors.cost_weight import CostWeight, prices, solve_beta
from pyro_smat.routing import Catalog, routing_costs


class CostAwareCatalogPrior(CatalogPrior):
    r""":math:`p(A) \propto \exp(-\beta\, \mathrm{cost}(A))` (Bayes-routed SMAT, section 4).

    Args:
        catalog: the J allowed routings.
        costs: ``(R + M,)``, the price of opening each source and expert (None: 0 for the fallback, 1 for every other);
            a routing costs the sum of what it opens, in
            any block.
        beta: >= 0, how much log probability one unit of cost takes away; > 0 when learned.
        target_cost: instead of beta: the expected cost of a task's routing, for which beta is solved.
        learn: make beta a parameter (empirical Bayes).
        hyperprior: density of a learned beta, such as ``pyro.distributions.Gamma(2.0, 1.0)``, or its (shape, rate).

    Raises:
        ValueError: for costs or a beta that make no distribution, a target that no beta >= 0
            attains (naming the range that is attained), or a hyperprior on a fixed beta.

    Example:
        >>> from pyro_smat.routing import Catalog
        >>> catalog = Catalog.k_hot(("a", "b", "c"), max_sources=2)
        >>> prior = CostAwareCatalogPrior(catalog, costs=[0.0, 1.0, 1.0], target_cost=0.5)
        >>> round(float(prior.expected_cost()), 4)
        0.5
    """

    registered_as: ClassVar[str] = "cost_aware"
    costs_of_routings: Tensor

    def __init__(
        self,
        catalog: Catalog,
        costs: Tensor | Sequence[float] | None = None,
        *,
        beta: float = 1.0,
        target_cost: float | None = None,
        learn: bool = False,
        hyperprior: TorchDistribution | Sequence[float] | None = None,
    ) -> None:
        super().__init__(catalog)
        rows = catalog.coefficients
        opened = rows if self.num_blocks == 1 else rows.amax(1)
        of_routings = routing_costs(opened.reshape(len(catalog), -1), prices(costs, rows.shape[-1]))
        if target_cost is not None:
            exact = of_routings.double()
            beta = solve_beta(lambda b: ((-b * exact).softmax(-1) @ exact).item(), exact.min().item(), target_cost)
        self.cost_weight = CostWeight(beta, learn=learn, hyperprior=hyperprior)
        self.register_buffer("costs_of_routings", of_routings)

    @property
    def beta(self) -> Tensor:
        """0-dim."""
        return self.cost_weight.beta

    @property
    def logits(self) -> Tensor:
        return (self.raw_logits - self.beta * self.costs_of_routings).log_softmax(-1)

    def expected_cost(self) -> Tensor:
        """E cost(A), 0-dim, in units of the costs."""
        return self.logits.exp() @ self.costs_of_routings

    def hyper_log_densities(self) -> dict[str, Tensor]:
        return self.cost_weight.log_densities()
