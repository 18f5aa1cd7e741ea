"""Routing priors: what is believed about the coefficients before a support set is seen."""

from pyro_smat.models.priors.catalog import CatalogPrior, CostAwareCatalogPrior
from pyro_smat.models.priors.logistic_normal import LogisticNormalPrior

__all__ = ["CatalogPrior", "CostAwareCatalogPrior", "LogisticNormalPrior"]
