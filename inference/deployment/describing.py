"""Describing: from a model and a guide that were made in Python to a router with a config that makes them again."""

from __future__ import annotations

import re
from typing import Any

from pyro_smat.encoders import DescribedEncoder
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.assembly.config import RunConfig, build_config
from pyro_smat.inference.assembly.router import Router
from pyro_smat.models import RoutedModel
from pyro_smat.networks.build import describe_network
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import Choice, describe
from pyro_smat.routing import Catalog


def router_of(model: RoutedModel, guide: RoutingGuide, image_shape: tuple[int, ...]) -> Router:
    """A router around a trained pair.

    Args:
        model, guide: the pair; the model remembers its library and prior, the guide its catalog.
        image_shape: ``(C, H, W)``, square.

    Raises:
        ValueError: for images that are not square with 1 or 3 channels, or parts that do not say how they were made.
    """
    channels, height, width = image_shape
    if height != width or channels not in (1, 3):
        raise ValueError(f"image_shape is {tuple(image_shape)}; expected 1 or 3 channels and square images")
    library, network = model.constructed_with["library"], model.network.template
    encoder = guide.router.encoder if hasattr(guide, "router") else None
    catalog = guide.constructed_with.get("catalog")
    chosen = describe("guide", guide)
    if isinstance(encoder, DescribedEncoder):
        plain = Choice(chosen.of, chosen.kind, {**chosen.options, "encoder": describe("encoder", encoder.support)})
        chosen = Choice(plain.of, plain.kind, plain.options, chosen.factory)
    known = describe_network(network)
    values: dict[str, Any] = {
        "data": {"kind": "none", "size": height, "channels": channels},
        "sources": {
            **({} if known is None else {"network": known.to_dict()}),
            "blocks": _patterns(library.space),
            "descriptors": isinstance(encoder, DescribedEncoder),
        },
        "model": describe("model", model).to_dict(),
        "prior": describe("prior", model.prior).to_dict(),
        "guide": chosen.to_dict(),
        "experts": _experts(model.experts),
    }
    own = {kind: type(part) for kind, part in (("model", model), ("guide", guide), ("prior", model.prior))}
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


def _patterns(space: ParameterSpace) -> dict[str, str]:
    """Regular expressions of the tensor names of each block."""
    if len(space.block_names) == 1:
        return {}
    names: dict[str, list[str]] = {block: [] for block in space.block_names}
    for entry in space.entries:
        names[space.block_names[entry.block]].append(re.escape(entry.name))
    return {block: f"^({'|'.join(found)})$" for block, found in names.items()}


def _experts(bank: ExpertBank | None) -> dict[str, Any]:
    if bank is None:
        return {"count": 0}
    made = bank.constructed_with
    wanted = ("sparsity", "granularity", "gates", "budget", "dual_learning_rate", "ramp")
    return {"count": len(bank), **{name: made[name] for name in wanted if name in made}}
