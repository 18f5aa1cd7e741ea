"""Routing: what the latent variables are. Names and logits in; catalogs, ILR coordinates and distributions out.

A distribution of simplex weights is one file in ``distributions/``, a density of ILR coordinates.
"""

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
