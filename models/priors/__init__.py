"""Routing priors: what is believed about the coefficients before a support set is seen."""

from pyro_smat.models.priors.catalog import CatalogPrior, CostAwareCatalogPrior
from pyro_smat.models.priors.concrete import ConcretePrior
from pyro_smat.models.priors.dirichlet import DirichletPrior
from pyro_smat.models.priors.hierarchical import HierarchicalPrior
from pyro_smat.models.priors.logistic_normal import LogisticNormalPrior
from pyro_smat.models.priors.mixture import MixturePrior
from pyro_smat.models.priors.prior import RoutingPrior, SimplexPrior
from pyro_smat.models.priors.simplex_cost import SimplexCostPrior

__all__ = [
    "CatalogPrior",
    "ConcretePrior",
    "CostAwareCatalogPrior",
    "DirichletPrior",
    "HierarchicalPrior",
    "LogisticNormalPrior",
    "MixturePrior",
    "RoutingPrior",
    "SimplexCostPrior",
    "SimplexPrior",
]
