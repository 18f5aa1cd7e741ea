"""Distributions on the simplex, all as densities of contrasts, so that any guide pairs with any prior."""

from pyro_smat.distributions.catalog import CatalogCategorical, RelaxedCatalog
from pyro_smat.distributions.concrete import ContrastConcrete
from pyro_smat.distributions.contrast import ContrastDistribution
from pyro_smat.distributions.dirichlet import ContrastDirichlet
from pyro_smat.distributions.mixture import ContrastMixture
from pyro_smat.distributions.normal import ContrastNormal
from pyro_smat.distributions.simplex_cost import ContrastSimplexCost

__all__ = [
    "CatalogCategorical",
    "ContrastConcrete",
    "ContrastDirichlet",
    "ContrastDistribution",
    "ContrastMixture",
    "ContrastNormal",
    "ContrastSimplexCost",
    "RelaxedCatalog",
]
