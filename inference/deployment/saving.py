"""Saving: a router as a folder of files, router.safetensors and router.json; nothing in it is run or unpickled.

A network that was built from a configuration elsewhere (a folder of transformers) has that in network.json. Classes
come from the registry by name, or are passed by the caller. The JSON holds SHA-256 digests of the other files and of
itself, and one schema says what it must hold. The weights decide which files belong together
(:mod:`pyro_smat.inference.deployment.files_together`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.files import content_digest, read_json
from pyro_smat.files.records import first_problem, record_content
from pyro_smat.inference.assembly.config import RunConfig, build_config
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.deployment.files_together import verify, waiting, write_together
from pyro_smat.inference.deployment.format_3 import from_format_3
from pyro_smat.inference.deployment.saved_network import CONFIGURATION, configuration_file, saved_network
from pyro_smat.inference.training.settings import Precision
from pyro_smat.networks.build import describe_network
from pyro_smat.registry import Choice
from pyro_smat.registry.entries import Factory, how_to_pass, is_file
from pyro_smat.routing import Catalog
from pyro_smat.sources import FeatureSubspace, SourceLibrary, load_weights
from pyro_smat.sources.template import Template, matches, space_without

FORMAT = 4
WEIGHTS, DESCRIPTION = "router.safetensors", "router.json"


class SavedRouter(BaseModel):
    """What router.json holds.

    Attributes:
        format: 4.
        weights: SHA-256 digest of router.safetensors.
        network: what builds the template of the networks; None for one that has to be passed.
        configuration: SHA-256 digest of network.json, what the network was built from
            (:mod:`pyro_smat.networks.configuration`); None where there is none.
        source_names: of the R sources.
        catalog: names of the routings of a guide over a catalog.
        config: that the router was built from.
        deployment: how it decides.
        pixels: statistics of the training images; None where unknown, as in routers from before there were any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[4]
    weights: str
    network: dict[str, Any] | None
    source_names: tuple[str, ...]
    catalog: tuple[str, ...] | None
    config: dict[str, Any]
    deployment: dict[str, Any]
    pixels: PixelStatistics | None = None
    configuration: str | None = None


def save_router(folder: Path, router: Router, deployment: Deployment) -> None:
    """Write router.safetensors, router.json and, where the network has a configuration, network.json.

    Raises:
        ValueError: when the folder cannot be written to.
    """
    tensors = {f"model.{k}": v for k, v in router.model.state_dict().items()}
    tensors |= {f"guide.{k}": v for k, v in router.guide.state_dict().items()}
    if router.catalog is not None:
        tensors["catalog"] = router.catalog.coefficients
    if router.descriptors is not None:
        tensors["descriptors"] = router.descriptors
    weights = router.network.state_dict()
    tensors |= {f"head.{name}": weights[name] for name in _constants_of(router.network, router.config)}
    for name, subspace in router.library.subspaces.items():
        tensors |= {f"subspace.{key}.{name}": value for key, value in subspace.tensors().items()}
    tensors = {k: v.clone() for k, v in tensors.items()}  # the format refuses memory that priors and catalog share
    tensors["sources"] = router.library.basis
    content = to_safetensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    network = describe_network(router.network)
    configuration = None if network is None else configuration_file(router.network)
    saved = SavedRouter(
        format=FORMAT,
        weights=hashlib.sha256(content).hexdigest(),
        network=None if network is None else network.to_dict(),
        source_names=router.library.names,
        catalog=None if router.catalog is None else router.catalog.names,
        config=router.config.model_dump(mode="json"),
        deployment=deployment.to_dict(),
        pixels=router.pixels,
        configuration=None if configuration is None else hashlib.sha256(configuration).hexdigest(),
    )
    others = {} if configuration is None else {folder / CONFIGURATION: configuration}
    others[folder / DESCRIPTION] = record_content(saved.model_dump(mode="json"))
    write_together(folder / WEIGHTS, content, others)


def load_router(
    folder: Path,
    device: torch.device,
    *,
    network: nn.Module | None = None,
    own: Mapping[str, Factory] | None = None,
    precision: Precision | None = None,
) -> tuple[Router, Deployment]:
    """Open what :func:`save_router` wrote, or a router of format 3.

    Args:
        folder: with router.safetensors and router.json.
        device: where to put the router.
        network: the template, when it is not one that the registry can build.
        own: kind ("model", "guide", "prior", ...) -> the class of a router that was made with one of the user's own.
        precision: of networks and features, instead of that of the training.

    Raises:
        ValueError: for missing, damaged or foreign files (each named, with what was expected), or classes that were not
            passed.
    """
    try:
        return _load(folder, device, network, dict(own or {}), precision)
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder / DESCRIPTION}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: what it says cannot be built ({type(error).__name__}: {error}); expected what "
            "RoutedClassifier.save wrote"
        ) from error


def _load(
    folder: Path,
    device: torch.device,
    network: nn.Module | None,
    own: Mapping[str, Factory],
    precision: Precision | None,
) -> tuple[Router, Deployment]:
    saved = _description_of_weights(folder)
    tensors = load_weights(folder / WEIGHTS)
    try:
        config = build_config(saved.config, own=own)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION}: {error}") from error
    _refuse_missing(folder, config, own)
    if precision is not None:
        config = config.replaced(training={"precision": precision})
    module = saved_network(folder, saved.network, saved.configuration, given=network, own=own)
    names = [n for n in _constants_of(module, config) if matches(n, *config.sources.head) or f"head.{n}" in tensors]
    if names:  # routers from before integers were saved have a head alone
        module = copy.deepcopy(module)
        module.load_state_dict({name: tensors.pop(f"head.{name}") for name in names}, strict=False)
    space = space_without(module, config.sources.blocks or None, config.sources.head)
    if "sources" not in tensors or tensors["sources"].shape != (len(saved.source_names), space.dim):
        found = tuple(tensors["sources"].shape) if "sources" in tensors else "missing"
        raise ValueError(
            f"{folder / WEIGHTS}: sources are {found}; expected ({len(saved.source_names)}, {space.dim}) for network "
            f"{saved.network and saved.network['kind']!r}"
        )
    template = Template.from_module(module, config.sources.head)  # what a source that is added later must hold
    subspaces = _subspaces(folder, saved.source_names, tensors)
    library = SourceLibrary(saved.source_names, tensors.pop("sources"), space, template, subspaces=subspaces)
    if saved.catalog is not None and "catalog" not in tensors:
        raise ValueError(
            f"{folder / WEIGHTS}: the catalog of {len(saved.catalog)} routings is missing; expected it beside the "
            "sources"
        )
    catalog = None if saved.catalog is None else Catalog(tensors.pop("catalog"), saved.catalog)
    router = build_router(
        config, device, opened=(module, library), catalog=catalog, descriptors=tensors.pop("descriptors", None)
    )
    router = replace(router, pixels=saved.pixels)
    for part, target in (("model", router.model), ("guide", router.guide)):
        state = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        try:
            target.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{folder}: the saved {part} does not fit its config ({error})") from error
    try:
        deployment = Deployment.from_dict(saved.deployment, own=own)
    except ValidationError as error:
        raise ValueError(f"{folder / DESCRIPTION}: deployment: {first_problem(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / DESCRIPTION}: deployment: {error}") from error
    _refuse_missing(folder, deployment, own)
    return router, deployment


def _description_of_weights(folder: Path) -> SavedRouter:
    """The description of the weights that are there, which may wait beside an older one."""
    path = folder / DESCRIPTION
    with suppress(ValueError):
        if waiting(path).is_file():
            saved = read_description(waiting(path))
            verify(folder / WEIGHTS, saved.weights)
            return saved
    saved = read_description(path)
    verify(folder / WEIGHTS, saved.weights)
    return saved


def read_description(path: Path) -> SavedRouter:
    """What router.json says, checked against its digest and its schema.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    values = read_json(path, "RoutedClassifier.save")
    if not isinstance(values, dict) or values.get("format") not in (3, FORMAT):
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise ValueError(
            f"{path}: format is {found!r}; this version reads formats 3 and {FORMAT}: save the router again with the "
            "version that wrote it, or install that version"
        )
    try:
        if values["format"] == 3:
            return SavedRouter.model_validate(from_format_3(values))
        digest = values.pop("digest", None)
        if digest != content_digest(values):
            raise ValueError(
                f"its digest is {digest!r} and its content's {content_digest(values)!r}: it was changed or damaged"
            )
        return SavedRouter.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected what RoutedClassifier.save wrote") from error


def _constants_of(network: nn.Module, config: RunConfig) -> tuple[str, ...]:
    """Tensors of no source, which are the network's own and saved with the router: its head, its tables of integers."""
    return tuple(
        name
        for name, value in network.state_dict().items()
        if matches(name, *config.sources.head) or (not value.is_floating_point() and value.numel() > 1)
    )


def _subspaces(folder: Path, sources: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, FeatureSubspace]:
    """Those of the sources' training features, of the sources that have one."""
    found = {}
    for name in sources:
        parts = {key: tensors.pop(f"subspace.{key}.{name}", None) for key in FeatureSubspace.PARTS}
        if any(part is not None for part in parts.values()):
            try:
                found[name] = FeatureSubspace.of_tensors(parts)
            except ValueError as error:
                raise ValueError(f"{folder / WEIGHTS}: subspace of source {name!r}: {error}") from error
    return found


def _refuse_missing(folder: Path, said: RunConfig | Deployment, own: Mapping[str, Factory]) -> None:
    """Classes of the user's own that were not passed, at any depth of the config or the deployment."""
    for choice in _choices(said):
        if is_file(choice.kind) and choice.of != "network" and choice.of not in own:
            raise ValueError(
                f"{folder}: was trained with a {choice.of} of your own, {choice.kind}; "
                f"{how_to_pass(choice.of, choice.kind)}"
            )


def _choices(value: Any) -> list[Choice]:
    if isinstance(value, Choice):
        return [value, *(c for v in value.options.values() for c in _choices(v))]
    if isinstance(value, BaseModel):
        return [c for name in type(value).model_fields for c in _choices(getattr(value, name))]
    if isinstance(value, tuple | list):
        return [c for part in value for c in _choices(part)]
    return []
