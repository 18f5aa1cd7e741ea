"""Amortised posteriors q(routing | support set), one family a file."""

from pyro_smat.guides.catalog import CatalogGuide
from pyro_smat.guides.logistic_normal import LogisticNormalGuide
from pyro_smat.guides.point import PointGuide
from pyro_smat.guides.posterior import CatalogPosterior, LogisticNormalPosterior, PointPosterior, RoutingPosterior
from pyro_smat.guides.router import RouterNetwork, RoutingGuide

__all__ = [
    "CatalogGuide",
    "CatalogPosterior",
    "LogisticNormalGuide",
    "LogisticNormalPosterior",
    "PointGuide",
    "PointPosterior",
    "RouterNetwork",
    "RoutingGuide",
    "RoutingPosterior",
]
