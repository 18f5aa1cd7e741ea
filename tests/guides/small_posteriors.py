"""A posterior of every family with random parameters, and a prior of the same sites to compare it with."""

from __future__ import annotations

import torch

from pyro_smat.guides import (
    CatalogPosterior,
    ConcretePosterior,
    DirichletPosterior,
    HierarchicalPosterior,
    LogisticNormalPosterior,
    PointPosterior,
    RoutingPosterior,
)
from pyro_smat.models.priors import CatalogPrior, LogisticNormalPrior, RoutingPrior
from pyro_smat.routing import Catalog

CATALOG_FAMILIES = ("catalog", "hierarchical")
SIMPLEX_FAMILIES = ("logistic_normal", "concrete", "dirichlet", "point")
FAMILIES = CATALOG_FAMILIES + SIMPLEX_FAMILIES
SHAPES = [(1, 0), (1, 1), (1, 3), (2, 0), (3, 1), (3, 2), (4, 3)]


def small_catalog(sources: int, experts: int, blocks: int = 1) -> Catalog:
    """Up to pairs of sources with every expert; single sources where there are blocks."""
    names = tuple("abcd"[:sources])
    if blocks == 1:
        return Catalog.k_hot(names, experts, max_sources=min(2, sources))
    return Catalog.blockwise([Catalog.k_hot(names, experts)] * blocks)


def random_posterior(
    family: str, sources: int, experts: int, blocks: int = 1, episodes: int = 2, seed: int = 0
) -> RoutingPosterior:
    """float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (episodes, *(blocks,) * (blocks > 1), sources + experts)
    if family in CATALOG_FAMILIES:
        catalog = small_catalog(sources, experts, blocks)
        logits = 1.5 * torch.randn(episodes, len(catalog), generator=generator, dtype=torch.float64)
        if family == "catalog":
            return CatalogPosterior(logits, catalog, num_sources=sources)
        return HierarchicalPosterior(logits, torch.tensor(catalog.families()), catalog=catalog, num_sources=sources)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    other = torch.rand(shape, generator=generator, dtype=torch.float64)
    if family == "logistic_normal":
        return LogisticNormalPosterior(values, 0.4 + other, num_sources=sources)
    if family == "concrete":
        temperature = 0.5 + torch.rand(episodes, 2, generator=generator, dtype=torch.float64)
        return ConcretePosterior(values, temperature, num_sources=sources)
    if family == "dirichlet":
        return DirichletPosterior((0.3 + values).exp(), sources)
    return PointPosterior(values, sources)


def prior_of_sites(family: str, sources: int, experts: int, blocks: int = 1) -> RoutingPrior:
    """A prior that pairs with :func:`random_posterior`, float64."""
    if family in CATALOG_FAMILIES:
        catalog = small_catalog(sources, experts, blocks)
        return CatalogPrior(catalog, logits=torch.linspace(-1, 1, len(catalog))).double()
    loc = torch.linspace(-1, 0.5, sources + experts, dtype=torch.float64)
    return LogisticNormalPrior(sources, experts, loc=loc, scale=1.3, num_blocks=blocks).double()
