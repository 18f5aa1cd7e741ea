"""Routing priors: what is believed about the coefficients before a support set is seen.

In: the sizes of a routing (and its catalog). Out: sites to sample in the episode plate, and the coefficients they make.
Add one by one file here: a :class:`RoutingPrior` under ``@register("prior", name)``.
"""

from pyro_smat.models.priors.catalog import CatalogPrior
from pyro_smat.models.priors.concrete import ConcretePrior
from pyro_smat.models.priors.cost_aware import cost_aware
from pyro_smat.models.priors.cost_aware_catalog import CostAwareCatalogPrior
from pyro_smat.models.priors.dirichlet import DirichletPrior
from pyro_smat.models.priors.hierarchical import HierarchicalPrior
from pyro_smat.models.priors.logistic_normal import LogisticNormalPrior
from pyro_smat.models.priors.mixture import MixturePrior
from pyro_smat.models.priors.prior import RoutingPrior, SimplexPrior
from pyro_smat.models.priors.simplex_cost import SimplexCostPrior
from pyro_smat.models.priors.uniform import uniform

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
    "cost_aware",
    "uniform",
]
