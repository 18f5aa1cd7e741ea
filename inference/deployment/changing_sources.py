"""Adding a source to a trained router and removing one, without training.

Nothing in a router belongs to a single source: sources are scored by one network from their evidence on the support
and their descriptors. So a router over other sources is the same weights around another library; what does belong to
single sources (a learned prior over a catalog, prices) has to be named or refused.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import build_router, default_catalog
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.training.catalogs import needs_search
from pyro_smat.registry import Choice
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.opening import Source


def add_source(
    classifier: RoutedClassifier,
    name: str,
    checkpoint: Source,
    *,
    cost: float = 1.0,
    base: Source | None = None,
) -> RoutedClassifier:
    """The router with one more source, which may get weight at once.

    Guides on the simplex have one more weight. A catalog of all small mixtures has those with the new source too; one
    that was searched gets the new source alone, with every expert.

    Args:
        classifier: the router; it is left as it is.
        name: of the new source.
        checkpoint: a file, a network or a state dict of the sources' architecture.
        cost: its price, where the config prices the sources one by one.
        base: of a file that stores differences; default: theta_pre, as the router has it (float32, without a head).

    The threshold of abstention stays what it was, though the scores of more sources may be others.

    Raises:
        ValueError: for a name that is taken, a checkpoint that does not fit, or weights learned for single sources.
    """
    router = classifier.router
    library = router.library.with_source(name, checkpoint, base=base)
    last, experts = len(library) - 1, router.config.experts.count
    catalog = router.catalog
    if catalog is not None and _is_fixed(router.config):
        old = catalog.coefficients
        extended = torch.cat([old[..., :last], torch.zeros_like(old[..., :1]), old[..., last:]], dim=-1)
        alone = Catalog.uniform_mixtures(
            library.names, [((last,), expert) for expert in (range(experts) if experts else [None])], experts
        )
        rows = alone.coefficients.to(old)
        if old.ndim == 3:
            rows = rows.unsqueeze(1).expand(-1, old.shape[1], -1)
        catalog = Catalog(torch.cat([extended, rows]), (*catalog.names, *alone.names))
    prices = (*range(last), None, *range(last, last + experts))
    return _over(classifier, library, catalog, _repriced(router.config, prices, cost))


def remove_source(classifier: RoutedClassifier, name: str) -> RoutedClassifier:
    """The router without one of its sources; the others share its weight.

    A searched catalog loses the routings that open the source.

    Args:
        classifier: the router; it is left as it is.
        name: of the source; not of the fallback, source 0.

    Raises:
        ValueError: for a source that is not there, is the fallback, or is in every routing of the catalog, or a router
            with weights of single sources.
    """
    router = classifier.router
    if name == router.library.names[0]:
        raise ValueError(
            f"{name!r} is theta_pre, the fallback of this router; expected another source: train a new one"
        )
    library = router.library.without(name)
    gone, catalog = router.library.names.index(name), router.catalog
    kept = [c for c in range(len(router.library) + router.config.experts.count) if c != gone]
    if catalog is not None and _is_fixed(router.config):
        closed = (catalog.coefficients[..., gone] == 0).reshape(len(catalog), -1).all(-1)
        if not closed.any():
            raise ValueError(f"every routing of the catalog opens {name!r}; expected one without: train a new router")
        names = tuple(n for n, keep in zip(catalog.names, closed.tolist(), strict=True) if keep)
        catalog = Catalog(catalog.coefficients[closed][..., kept], names)
    return _over(classifier, library, catalog, _repriced(router.config, tuple(kept), 0.0))


def _over(
    classifier: RoutedClassifier, library: SourceLibrary, catalog: Catalog | None, config: RunConfig
) -> RoutedClassifier:
    """The same weights around another library."""
    old = classifier.router
    if catalog is not None and not _is_fixed(config):
        catalog = default_catalog(config, library)
    new = build_router(config, old.device, opened=(old.network, library), catalog=catalog)
    new = replace(new, pixels=old.pixels)
    for part in ("model", "guide"):
        _copy_weights(getattr(old, part), getattr(new, part), part)
    # A certificate, and what validation said of misrouting, are of the router as it was.
    return RoutedClassifier(new, classifier.deployment.but(certificate=None, misrouting=None))


def _copy_weights(old: nn.Module, new: nn.Module, part: str) -> None:
    """Parameters, and buffers that training has changed; those of the prior follow from the new sources."""
    saved = old.state_dict()
    parameters = dict(new.named_parameters())
    for name, target in new.state_dict(keep_vars=True).items():
        if name.startswith("prior.") and name not in parameters:
            continue
        if saved[name].shape != target.shape:
            raise ValueError(
                f"{part}.{name} has shape {tuple(saved[name].shape)} and would need {tuple(target.shape)}: it was "
                "learned for these sources one by one; expected a router without such weights (prior.learn = false): "
                "train a new one"
            )
        target.data.copy_(saved[name])


def _repriced(config: RunConfig, kept: tuple[int | None, ...], cost: float) -> RunConfig:
    """The config with prices of the old columns ``kept``, None for the new source."""

    def of(prior: Choice) -> Choice:
        options = dict(prior.options)
        if options.get("costs") is not None:
            options["costs"] = tuple(cost if c is None else options["costs"][c] for c in kept)
        if "components" in options:
            options["components"] = tuple(of(part) for part in options["components"])
        return replace(prior, options=options)

    return config.model_copy(update={"prior": of(config.prior)})


def _is_fixed(config: RunConfig) -> bool:
    """Whether the catalog is a list that was found once, and not all small mixtures of whatever sources there are."""
    choice: Choice = config.guide.options["catalog"]
    return needs_search(choice) or choice.kind == "given"
