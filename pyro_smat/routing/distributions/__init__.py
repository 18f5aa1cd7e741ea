"""Distributions on the simplex, all as densities of ILR coordinates, so that any guide pairs with any prior."""

from pyro_smat.routing.distributions.catalog import CatalogCategorical, RelaxedCatalog
from pyro_smat.routing.distributions.concrete import ILRConcrete
from pyro_smat.routing.distributions.dirichlet import ILRDirichlet
from pyro_smat.routing.distributions.ilr import ILRDistribution
from pyro_smat.routing.distributions.mixture import ILRMixture
from pyro_smat.routing.distributions.normal import ILRNormal
from pyro_smat.routing.distributions.simplex_cost import ILRSimplexCost

__all__ = [
    "CatalogCategorical",
    "ILRConcrete",
    "ILRDirichlet",
    "ILRDistribution",
    "ILRMixture",
    "ILRNormal",
    "ILRSimplexCost",
    "RelaxedCatalog",
]
