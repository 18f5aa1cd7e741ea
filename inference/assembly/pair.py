"""What goes with what: priors and guides by their constructors, models and guides by their sites.

Every misfit is an error that names it before any training starts.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.sites import sample_sites
from pyro_smat.registry import Choice, accepts, find, names
from pyro_smat.routing import Catalog

MODEL_NEEDS = (
    "forward",
    "basis",
    "logits",
    "network",
    "source_basis",
    "source_names",
    "prior",
    "experts",
    "scale",
    "fit_head",
    "metric",
)
GUIDE_NEEDS = ("forward", "posterior", "anneal")


def goes_with(factory: Any, over_catalog: bool) -> bool:
    """Whether a prior fits guides over a catalog, or those on the simplex: its constructor says so."""
    if accepts(factory, "guide_class") or accepts(factory, "components"):
        return True
    return accepts(factory, "catalog") == over_catalog


def check_prior(prior: Choice, guide: Choice, catalog: Catalog | None) -> None:
    """Refuse a prior over a catalog for a guide without one, and the reverse.

    Raises:
        ValueError: naming the priors that go with the guide.
    """
    over = catalog is not None
    if prior.factory is not None and not goes_with(prior.factory, over):
        known = [name for name in names("prior") if goes_with(find("prior", name), over)]
        raise ValueError(
            f"prior {prior.kind!r} does not go with guide {guide.kind!r}; expected one of {', '.join(known)}"
        )
    for component in prior.options.get("components", ()):
        check_prior(component, guide, catalog)


def check_attributes(made: Any, needed: tuple[str, ...], what: str) -> None:
    """Raises ValueError when a model or guide lacks something that training and deployment call."""
    missing = [
        name
        for name in needed
        if not hasattr(made, name) or getattr(getattr(made, name), "__isabstractmethod__", False)
    ]
    if missing:
        raise ValueError(
            f"{what} {type(made).__name__} has no {', '.join(missing)}; expected a subclass of the library's, or a "
            f"class with {', '.join(needed)}"
        )


def check_pair(model: Any, guide: Any, batch: EpisodeBatch) -> None:
    """Run guide and model once on a batch and compare their sites.

    Raises:
        ValueError: for a wrong signature, a latent site that the other one lacks, or a model that observes nothing.
    """
    with torch.no_grad():
        guide_trace = _trace(guide, guide, batch, "guide")
        drawn = {site["name"]: site for site in sample_sites(guide_trace)}
        model_trace = _trace(model, poutine.replay(model, trace=guide_trace), batch, "model")
    sites = {site["name"]: site for site in sample_sites(model_trace)}
    latent = {name for name, site in sites.items() if not site["is_observed"]}
    for name in sorted(latent - set(drawn)):
        raise ValueError(
            f"model {type(model).__name__} draws the site {name!r}, which guide {type(guide).__name__} does not have "
            f"(its sites: {sorted(drawn)}); add it to the guide, or choose a prior of the guide's family"
        )
    for name in sorted(set(drawn) - latent):
        if not drawn[name]["infer"].get("is_auxiliary"):
            raise ValueError(
                f"guide {type(guide).__name__} draws the site {name!r}, which model {type(model).__name__} does not "
                f'have (its latent sites: {sorted(latent)}); remove it, or mark it infer={{"is_auxiliary": True}}'
            )
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(
            f"model {type(model).__name__} observes nothing; expected a pyro.sample(..., obs=batch.query.labels) "
            "inside the 'episodes' plate"
        )


def _trace(program: Any, sampled: Any, batch: EpisodeBatch, what: str) -> Trace:
    """The trace of ``sampled``, which runs ``program``."""
    try:
        inspect.signature(program.forward).bind(batch)
    except TypeError as error:
        raise ValueError(
            f"{what} {type(program).__name__} cannot be called with a batch ({error}); expected forward(self, batch)"
        ) from error
    return prune_subsample_sites(poutine.trace(sampled).get_trace(batch))
