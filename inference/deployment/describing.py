"""Describing: from a model and a guide that were made in Python to a router with a config that makes them again."""

from __future__ import annotations

import copy
import glob
import re
from typing import Any

import torch
from torch import nn

from pyro_smat.encoders import DescribedEncoder
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.assembly.config import RunConfig, build_config
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.deployment.network_check import checked_shape
from pyro_smat.inference.training.catalogs import k_hot_catalog
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.networks.build import describe_network
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import Choice, Remembered, accepts, choose, describe
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary


def copied_pair(model: RoutedModel, guide: RoutingGuide) -> tuple[RoutedModel, RoutingGuide]:
    """Copies of a pair that share what it shares, and the sources with the originals."""
    library = model.constructed_with["library"] if isinstance(model, Remembered) else None
    shared = [part for part in (getattr(model, "source_basis", None), library) if part is not None]
    return copy.deepcopy((model, guide), {id(part): part for part in shared})


def router_of(model: RoutedModel, guide: RoutingGuide, image_shape: tuple[int, ...]) -> Router:
    """A router around a trained pair.

    Args:
        model, guide: the pair; the model remembers its library and prior, the guide its catalog.
        image_shape: ``(C, H, W)``, square.

    Raises:
        ValueError: for images that are not square with 1 or 3 channels, or parts that do not say how they were made.
    """
    for part, what in ((model, "model"), (guide, "guide")):
        if not isinstance(part, Remembered):
            raise ValueError(
                f"{what} {type(part).__name__} does not say how it was made; expected a subclass of the library's"
            )
    channels, height, _ = checked_shape(image_shape)
    library, network = model.constructed_with["library"], model.network.template
    encoder = guide.router.encoder if hasattr(guide, "router") else None
    catalog = guide.constructed_with.get("catalog")
    plain = encoder.support if isinstance(encoder, DescribedEncoder) else encoder
    own: dict[str, type[Any]] = {
        k: type(part) for k, part in (("model", model), ("guide", guide), ("prior", model.prior))
    }
    options: dict[str, Any] = {}
    if plain is not None and accepts(type(guide), "encoder"):
        options["encoder"], own["encoder"] = describe("encoder", plain), type(plain)
    if isinstance(catalog, Catalog):
        options["catalog"] = _catalog(catalog, library, model.experts)
    known = describe_network(network)
    values: dict[str, Any] = {
        "data": {"kind": "none", "size": height, "channels": channels},
        "sources": {
            **({} if known is None else {"network": known.to_dict()}),
            "blocks": _patterns(library.space),
            "head": _head(network, library.space),
            "descriptors": isinstance(encoder, DescribedEncoder),
        },
        "model": describe("model", model).to_dict(),
        "prior": describe("prior", model.prior).to_dict(),
        "guide": describe("guide", guide, **options).to_dict(),
        "guide_on_prior": _stands_on_prior(guide, model.prior),
        "experts": _experts(model.experts),
    }
    config: RunConfig = build_config(values, own=own)
    return Router(
        config,
        network,
        library,
        model,
        guide,
        model.source_basis.device,
        catalog if isinstance(catalog, Catalog) else None,
        encoder.descriptors.cpu() if isinstance(encoder, DescribedEncoder) else None,
    )


def _stands_on_prior(guide: RoutingGuide, prior: RoutingPrior) -> bool:
    """Whether the guide was given the model's prior, or one like it."""
    own = getattr(guide, "prior", None)
    if own is None or own is prior:
        return own is not None
    state, other = own.state_dict(), prior.state_dict()
    same = describe("prior", own) == describe("prior", prior) and state.keys() == other.keys()
    if not same or not all(torch.equal(state[name], other[name]) for name in state):
        raise ValueError(
            f"the guide stands on another prior ({type(own).__name__}) than the model's ({type(prior).__name__}); "
            "expected the same one, or none: a saved router has one prior"
        )
    return True


def _catalog(catalog: Catalog, library: SourceLibrary, experts: ExpertBank | None) -> Choice:
    """Every small mixture, where that is what it is; else one that was given."""
    blocks, count = len(library.space.block_names), 0 if experts is None else len(experts)
    for most in range(1, len(library) + 1):
        try:
            whole = k_hot_catalog(library.names, count, blocks, len(catalog), max_sources=most)
        except ValueError:  # more routings than the catalog has
            break
        if whole.names == catalog.names and torch.equal(whole.coefficients, catalog.coefficients.to(torch.float32)):
            return choose("catalog", {"kind": "k_hot", "max_sources": most})
    return choose("catalog", "given")


def _patterns(space: ParameterSpace) -> dict[str, str]:
    """Regular expressions of the tensor names of each block."""
    if len(space.block_names) == 1:
        return {}
    names: dict[str, list[str]] = {block: [] for block in space.block_names}
    for entry in space.entries:
        names[space.block_names[entry.block]].append(re.escape(entry.name))
    return {block: f"^({'|'.join(found)})$" for block, found in names.items()}


def _head(network: nn.Module, space: ParameterSpace) -> list[str]:
    """Patterns of the tensors that are the network's own, and no source's."""
    mixed = {entry.name for entry in space.entries}
    return [glob.escape(entry.name) for entry in ParameterSpace.from_module(network).entries if entry.name not in mixed]


def _experts(bank: ExpertBank | None) -> dict[str, Any]:
    if bank is None:
        return {"count": 0}
    made = bank.constructed_with
    wanted = ("sparsity", "granularity", "gates", "budget", "dual_learning_rate", "ramp")
    return {"count": len(bank), **{name: made[name] for name in wanted if name in made}}
