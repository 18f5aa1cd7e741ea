r"""Priors over a finite catalog of routings: uniform, or cost-aware p(A) \propto exp(-beta cost(A))."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_smat.local_module import LocalModule
from pyro_smat.routing import CATALOG_SITE, Catalog, routing_costs


class CatalogPrior(LocalModule):
    """Prior over the rows of a catalog.

    Args:
        catalog: the J allowed routings.
        logits: ``(J,)`` unnormalised log prior, -inf where a routing is forbidden; default uniform.

    Calling it inside the episode plate samples the site "routing" and returns its coefficients ``(*b, R + M)``.
    """

    logits: Tensor
    coefficients: Tensor

    def __init__(self, catalog: Catalog, logits: Tensor | None = None) -> None:
        super().__init__()
        logits = torch.zeros(len(catalog)) if logits is None else logits
        if logits.shape != (len(catalog),):
            raise ValueError(f"logits have shape {tuple(logits.shape)}; expected ({len(catalog)},), one a routing")
        if not torch.isfinite(logits.logsumexp(-1)):
            raise ValueError("logits hold NaN or +inf, or are all -inf; expected at least one routing that is allowed")
        self.catalog = catalog
        self.register_buffer("logits", logits.log_softmax(-1))
        self.register_buffer("coefficients", catalog.coefficients)

    def distributions(self) -> dict[str, dist.Categorical]:
        """The distribution of the site."""
        return {CATALOG_SITE: dist.Categorical(logits=self.logits)}

    def forward(self) -> Tensor:
        index = pyro.sample(CATALOG_SITE, self.distributions()[CATALOG_SITE])
        return self.coefficients[index]


class CostAwareCatalogPrior(CatalogPrior):
    r""":math:`p(A) \propto \exp(-\beta\, \mathrm{cost}(A))` (Bayes-routed SMAT, section 4).

    Args:
        catalog: the J allowed routings.
        costs: ``(R + M,)``, the price of opening each source and expert; a routing costs the sum of what it opens.
        beta: >= 0, how much log probability one unit of cost takes away.
    """

    def __init__(self, catalog: Catalog, costs: Tensor, beta: float) -> None:
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected >= 0 (0 is the uniform prior)")
        if costs.shape != catalog.coefficients.shape[1:]:
            raise ValueError(
                f"costs have shape {tuple(costs.shape)}; expected {tuple(catalog.coefficients.shape[1:])}, "
                "one for each source and expert"
            )
        super().__init__(catalog, -beta * routing_costs(catalog.coefficients, costs))
