"""Routing: what the latent variables are. Catalogs of routings, coordinates of the simplex, and their distributions."""

from pyro_smat.routing.catalog import WEIGHT_TOLERANCE, Catalog, routing_costs
from pyro_smat.routing.coordinates import (
    CATALOG_SITE,
    EXPERT_SITE,
    SOURCE_SITE,
    ilr_basis,
    softmax_of_ilr,
    straight_through,
)

__all__ = [
    "CATALOG_SITE",
    "EXPERT_SITE",
    "SOURCE_SITE",
    "WEIGHT_TOLERANCE",
    "Catalog",
    "ilr_basis",
    "routing_costs",
    "softmax_of_ilr",
    "straight_through",
]
