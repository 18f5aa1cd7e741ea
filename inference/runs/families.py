"""Which prior, catalog and guide a config means; which of them go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch

from pyro_smat.inference.runs import config as c
from pyro_smat.encoders import DescribedEncoder, SupportEncoder, build_encoder
from pyro_smat.guides import (
    CatalogGuide,
    ConcreteGuide,
    DirichletGuide,
    HierarchicalGuide,
    LogisticNormalGuide,
    PointGuide,
    RoutingGuide,
)
from pyro_smat.guides.catalog import ENUMERATION_LIMIT
from pyro_smat.inference.training.catalogs import needs_search
from pyro_smat.registry import build
from pyro_smat.inference.runs.custom import GUIDE_NEEDS, check_attributes, construct, load_class
from pyro_smat.models.priors import (
    CatalogPrior,
    ConcretePrior,
    CostAwareCatalogPrior,
    DirichletPrior,
    HierarchicalPrior,
    LogisticNormalPrior,
    MixturePrior,
    RoutingPrior,
    SimplexCostPrior,
)
from pyro_smat.routing import Catalog

GUIDES: dict[str, type[RoutingGuide]] = {
    "catalog": CatalogGuide,
    "hierarchical": HierarchicalGuide,
    "logistic_normal": LogisticNormalGuide,
    "concrete": ConcreteGuide,
    "dirichlet": DirichletGuide,
    "point": PointGuide,
}
CATALOG_FAMILIES = ("catalog", "hierarchical")
CATALOG_PRIORS = ("uniform", "cost_aware", "hierarchical", "mixture")
SIMPLEX_PRIORS = ("uniform", "cost_aware", "logistic_normal", "dirichlet", "concrete", "simplex_cost", "mixture")
LARGEST_CATALOG = 4096  # of estimators that do not enumerate it


def default_catalog(config: c.RunConfig, names: tuple[str, ...], blocks: int) -> Catalog | None:
    """Every uniform mixture of up to ``max_sources`` sources with each expert; None for guides on the simplex.

    Raises:
        ValueError: when the config wants a catalog that is searched.
    """
    guide = config.guide
    if guide.family not in CATALOG_FAMILIES:
        return None
    if needs_search(guide.catalog):
        raise ValueError(
            f"guide.catalog is {guide.catalog.kind!r}: the catalog has to be searched first; train_router does it, or "
            "pass catalog="
        )
    limit = ENUMERATION_LIMIT if guide.estimator == "enumerate" else LARGEST_CATALOG
    supplied = {"source_names": names, "num_experts": config.experts.count, "num_blocks": blocks, "limit": limit}
    return build(guide.catalog, supplied)


def build_prior(
    prior: c.Prior, family: str, sources: int, experts: int, blocks: int, catalog: Catalog | None
) -> RoutingPrior:
    """The prior of a config for a guide of that family.

    Raises:
        ValueError: for a kind that does not go with the family, or values that do not fit.
    """
    known = CATALOG_PRIORS if family in CATALOG_FAMILIES else SIMPLEX_PRIORS
    if prior.kind not in known:
        raise ValueError(f"prior.kind {prior.kind!r} does not go with guide.family {family!r}; expected one of {known}")
    if prior.kind == "mixture":
        parts = [build_prior(part, family, sources, experts, blocks, catalog) for part in prior.components]
        hyperprior = None if prior.hyperprior is None else dist.Dirichlet(torch.tensor(prior.hyperprior))
        return MixturePrior(parts, prior.weights, prior.learn, hyperprior, prior.kl)
    fallback_is_free = torch.ones(sources + experts)
    fallback_is_free[0] = 0.0
    costs = fallback_is_free if prior.costs is None else torch.tensor(prior.costs)
    if costs.shape != (sources + experts,):
        raise ValueError(
            f"prior.costs has {len(costs)} values; expected {sources + experts}: {sources} sources and {experts} "
            "experts"
        )
    if catalog is not None:
        return _over_catalog(prior, catalog, costs)
    return _on_simplex(prior, family, (sources, experts), blocks, costs)


def _over_catalog(prior: c.Prior, catalog: Catalog, costs: torch.Tensor) -> RoutingPrior:
    if prior.kind == "cost_aware":
        return _cost_aware(CostAwareCatalogPrior, (catalog, costs), prior)
    if prior.kind == "hierarchical":
        return HierarchicalPrior(catalog, catalog.families(), learn=prior.learn)
    return CatalogPrior(catalog)


def _on_simplex(prior: c.Prior, family: str, sizes: tuple[int, int], blocks: int, costs: torch.Tensor) -> RoutingPrior:
    kind = prior.kind
    if kind in ("uniform", "cost_aware"):  # of the guide's own kind where there is one: the KL is then exact
        gaussian = family in ("logistic_normal", "point")
        kind = "logistic_normal" if gaussian else "dirichlet" if kind == "uniform" else "simplex_cost"
    if kind == "simplex_cost":
        return _cost_aware(SimplexCostPrior, (*sizes, costs), prior, blocks=blocks)
    _refuse_learning(prior)
    _refuse_target(prior, "simplex_cost")
    if kind == "dirichlet":
        return DirichletPrior(*sizes, prior.concentration, blocks)
    if kind == "concrete":
        return ConcretePrior(*sizes, temperature=prior.temperature, blocks=blocks)
    beta = prior.beta if prior.kind == "cost_aware" else 0.0
    return LogisticNormalPrior.cost_aware(*sizes, costs, beta, prior.scale, blocks)


def _cost_aware(cls: Any, shape: tuple[Any, ...], prior: c.Prior, **options: Any) -> RoutingPrior:
    hyperprior = None if prior.hyperprior is None else _gamma(prior.hyperprior)
    make: Callable[..., RoutingPrior] = cls if prior.target_cost is None else cls.at_expected_cost
    amount = prior.beta if prior.target_cost is None else prior.target_cost
    return make(*shape, amount, learn_beta=prior.learn, hyperprior=hyperprior, **options)


def _gamma(values: tuple[float, ...]) -> dist.Gamma:
    if len(values) != 2 or min(values) <= 0:
        raise ValueError(f"prior.hyperprior of beta is {list(values)}; expected [shape, rate] of a gamma density, > 0")
    return dist.Gamma(torch.tensor(values[0]), torch.tensor(values[1]))


def _refuse_learning(prior: c.Prior) -> None:
    if prior.learn or prior.hyperprior is not None:
        raise ValueError(
            f"prior.learn and prior.hyperprior do nothing for kind {prior.kind!r} with this guide; expected them with "
            "kind 'simplex_cost' or 'mixture', or over a catalog 'cost_aware', 'hierarchical' or 'mixture'"
        )


def _refuse_target(prior: c.Prior, instead: str) -> None:
    if prior.target_cost is not None:
        raise ValueError(
            f"prior.target_cost does nothing for kind {prior.kind!r} with this guide; use kind {instead!r}"
        )


def build_guide(
    config: c.RunConfig,
    sources: int,
    blocks: int,
    catalog: Catalog | None,
    prior: RoutingPrior,
    feature_width: int,
    cls: type | None = None,
    descriptors: torch.Tensor | None = None,
) -> RoutingGuide:
    """The guide of a config; ``cls`` or ``config.custom.guide`` replaces the class of the family; ``descriptors``
    of the sources ``(R, D)`` are read beside the support.

    Raises:
        ValueError: for a class that asks for what cannot be had.
    """
    guide = config.guide
    if cls is None:
        cls = GUIDES[guide.family] if config.custom.guide is None else load_class(config.custom.guide)
    encoder: SupportEncoder = build_encoder(guide.encoder, feature_width, guide.hidden)
    if descriptors is not None:
        encoder = DescribedEncoder(encoder, descriptors)
    available: dict[str, Any] = {
        "sources": sources,
        "experts": config.experts.count,
        "blocks": blocks,
        "prior": prior,
        "encoder": encoder,
        "hidden": guide.hidden,
        "covariance": guide.covariance,
        "rank": guide.rank,
        "final_temperature": guide.final_temperature,
        "per_episode": guide.per_episode,
        "straight_through": guide.straight_through,
        "concentration": guide.concentration,
        "estimator": guide.estimator,
    }
    if catalog is not None:
        available |= {"catalog": catalog, "temperature": guide.relaxation}
    else:
        available["temperature"] = guide.temperature
    made = construct(cls, available)
    check_attributes(made, GUIDE_NEEDS, "guide")
    return made
