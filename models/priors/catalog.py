r"""Priors over a finite catalog of routings: uniform, given, or cost-aware p(A) \propto exp(-beta cost(A))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_smat.models.priors.cost_weight import CostWeight, solve_beta
from pyro_smat.models.priors.prior import RoutingPrior
from pyro_smat.models.priors.simplex_cost import check_costs
from pyro_smat.routing import CATALOG_SITE, Catalog, routing_costs
from pyro_smat.routing.distributions.catalog import CatalogCategorical


class CatalogPrior(RoutingPrior):
    """Prior over the rows of a catalog.

    Args:
        catalog: the J allowed routings, blockwise ones too.
        logits: ``(J,)`` unnormalised log prior, -inf where a routing is forbidden; default uniform.
        learn: make the logits a parameter (empirical Bayes).

    The site "routing" is one-hot, ``(J,)``; the coefficients are value @ A, so that relaxed values work as well.

    Raises:
        ValueError: for logits of another shape or that make no distribution.
    """

    raw_logits: Tensor
    coefficients: Tensor

    def __init__(self, catalog: Catalog, logits: Tensor | None = None, learn: bool = False) -> None:
        super().__init__()
        logits = torch.zeros(len(catalog)) if logits is None else logits
        check_logits(logits, len(catalog))
        self.catalog = catalog
        self.blocks = catalog.coefficients.shape[1] if catalog.coefficients.ndim == 3 else 1
        if learn:
            self.raw_logits = nn.Parameter(logits.clone())
        else:
            self.register_buffer("raw_logits", logits)
        self.register_buffer("coefficients", catalog.coefficients.clone())

    @property
    def logits(self) -> Tensor:
        """ln p(A) ``(J,)``, normalised."""
        return self.raw_logits.log_softmax(-1)

    @property
    def size(self) -> int:
        return self.coefficients.shape[-1]

    @property
    def site_names(self) -> tuple[str, ...]:
        return (CATALOG_SITE,)

    def distribution(self, site: str, drawn: Mapping[str, Tensor]) -> CatalogCategorical:
        self._check_site(site)
        return CatalogCategorical(self.logits)

    def base_logits(self) -> Tensor:
        return self.logits

    def coefficients_of(self, drawn: Mapping[str, Tensor]) -> Tensor:
        return torch.tensordot(drawn[CATALOG_SITE].to(self.coefficients.dtype), self.coefficients, 1)


class CostAwareCatalogPrior(CatalogPrior):
    r""":math:`p(A) \propto \exp(-\beta\, \mathrm{cost}(A))` (Bayes-routed SMAT, section 4).

    Args:
        catalog: the J allowed routings.
        costs: ``(R + M,)``, the price of opening each source and expert; a routing costs the sum of what it opens, in
            any block.
        beta: >= 0, how much log probability one unit of cost takes away; > 0 when learned.
        learn_beta: make beta a parameter (empirical Bayes).
        hyperprior: density of a learned beta, such as ``pyro.distributions.Gamma(2.0, 1.0)``.

    Raises:
        ValueError: for costs or a beta that make no distribution, or a hyperprior on a fixed beta.
    """

    costs_of_routings: Tensor

    def __init__(
        self,
        catalog: Catalog,
        costs: Tensor,
        beta: float,
        learn_beta: bool = False,
        hyperprior: dist.TorchDistribution | None = None,
    ) -> None:
        check_costs(costs, catalog.coefficients.shape[-1])
        super().__init__(catalog)
        self.cost_weight = CostWeight(beta, learn_beta, hyperprior)
        opened = catalog.coefficients if self.blocks == 1 else catalog.coefficients.amax(1)
        self.register_buffer("costs_of_routings", routing_costs(opened.reshape(len(catalog), -1), costs))

    @classmethod
    def at_expected_cost(
        cls,
        catalog: Catalog,
        costs: Tensor,
        target: float,
        learn_beta: bool = False,
        hyperprior: dist.TorchDistribution | None = None,
    ) -> Self:
        """The prior whose beta makes the expected cost of a task's routing ``target``.

        Raises:
            ValueError: for a target that no beta >= 0 attains, naming the range that is attained.
        """
        of_routings = cls(catalog, costs.double(), 0.0).costs_of_routings

        def expected(beta: float) -> float:
            return ((-beta * of_routings).softmax(-1) @ of_routings).item()

        beta = solve_beta(expected, of_routings.min().item(), target)
        return cls(catalog, costs, beta, learn_beta, hyperprior)

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


def check_logits(logits: Tensor, size: int) -> None:
    """Raises ValueError unless ``logits`` are ``(size,)`` and leave some routing allowed."""
    if logits.shape != (size,):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; expected ({size},), one a routing")
    if not torch.isfinite(logits.logsumexp(-1)):
        raise ValueError("logits hold NaN or +inf, or are all -inf; expected at least one routing that is allowed")
