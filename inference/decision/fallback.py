"""Fallbacks: the fixed routing that a task uses when the router is not sure."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.models.routed import RoutedModel
from pyro_smat.routing import CATALOG_SITE, Catalog

SOURCE_0 = "source 0"
PRIOR_MEAN = "prior mean"


@torch.no_grad()
def fallback_coefficients(name: str, model: RoutedModel, catalog: Catalog | None = None) -> Tensor:
    """The coefficients ``([L,] R + M)`` of a fallback.

    Args:
        name: "source 0"; "prior mean", the mean weights that the prior gives (where they have no closed form: those
            that guides start from); or the name of a source, or of a routing of the catalog.
        model: gives sources and prior.
        catalog: of a guide over a catalog.

    Raises:
        ValueError: for another name.
    """
    prior, sources = model.prior, model.source_names
    shape = (prior.size,) if prior.num_blocks == 1 else (prior.num_blocks, prior.size)
    coefficients = torch.zeros(shape, device=model.sources.device)
    if name == PRIOR_MEAN:
        log_weights = prior.base_logits().to(coefficients)
        if CATALOG_SITE in prior.site_names:
            return prior.coefficients_of({CATALOG_SITE: log_weights.softmax(-1)}).to(coefficients)
        parts = log_weights.split([len(sources), prior.size - len(sources)], dim=-1)
        return torch.cat([part.softmax(-1) for part in parts], dim=-1)
    if name == SOURCE_0 or name in sources:
        coefficients[..., 0 if name == SOURCE_0 else sources.index(name)] = 1.0
        return coefficients
    if catalog is not None and name in catalog.names:
        return catalog.coefficients[catalog.names.index(name)].to(coefficients)
    known = [SOURCE_0, PRIOR_MEAN, *sources, *(() if catalog is None else catalog.names)]
    raise ValueError(f"fallback is {name!r}; expected one of {', '.join(dict.fromkeys(known))}")
