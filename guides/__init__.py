"""Guides: a batch of supports in; posteriors q(routing | support set) and their sample sites out, one family a file.

Add one by one file here: a :class:`RoutingGuide` that implements ``posterior(batch)``, under
``@register("guide", name)``.
"""

from pyro_smat.guides.catalog import CatalogGuide, CatalogPosterior
from pyro_smat.guides.concrete import ConcreteGuide, ConcretePosterior
from pyro_smat.guides.dirichlet import DirichletGuide, DirichletPosterior
from pyro_smat.guides.hierarchical import HierarchicalGuide, HierarchicalPosterior
from pyro_smat.guides.information import PosteriorInformation, posterior_information
from pyro_smat.guides.logistic_normal import LogisticNormalGuide, LogisticNormalPosterior
from pyro_smat.guides.point import PointGuide, PointPosterior
from pyro_smat.guides.posterior import RoutingPosterior
from pyro_smat.guides.pseudo_bma import PseudoBMAGuide
from pyro_smat.guides.router import RouterNetwork, RoutingGuide, RoutingLogits
from pyro_smat.guides.simplex import SimplexPosterior

__all__ = [
    "CatalogGuide",
    "CatalogPosterior",
    "ConcreteGuide",
    "ConcretePosterior",
    "DirichletGuide",
    "DirichletPosterior",
    "HierarchicalGuide",
    "HierarchicalPosterior",
    "LogisticNormalGuide",
    "LogisticNormalPosterior",
    "PointGuide",
    "PointPosterior",
    "PosteriorInformation",
    "PseudoBMAGuide",
    "RouterNetwork",
    "RoutingGuide",
    "RoutingLogits",
    "RoutingPosterior",
    "SimplexPosterior",
    "posterior_information",
]
