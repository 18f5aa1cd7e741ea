"""The network of a saved router: built again from its name and options, and from network.json where it has one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_smat.files import read_json
from pyro_smat.networks.build import build_network
from pyro_smat.networks.configuration import configuration_of
from pyro_smat.registry import choose
from pyro_smat.registry.entries import Factory, how_to_pass

CONFIGURATION = "network.json"


def configuration_file(network: nn.Module) -> bytes | None:
    """The content of network.json; None for a network whose name and options say all."""
    values = configuration_of(network)
    return None if values is None else json.dumps(values, indent=2).encode()


def saved_network(
    folder: Path,
    described: Mapping[str, Any] | None,
    configuration: str | None,
    *,
    given: nn.Module | None,
    own: Mapping[str, Factory],
) -> nn.Module:
    """The template of a saved router.

    Args:
        folder: of the router.
        described: name and options of the network; None for one that has to be passed.
        configuration: SHA-256 digest of network.json; None where there is none.
        given: the template, which is then taken.
        own: kind -> class or function of the user's own.

    Raises:
        ValueError: for a network of the user's own that was not passed, one that cannot be built, or a network.json
            that is missing or damaged.
    """
    if given is not None:
        return given
    if described is None and "network" in own:
        made: nn.Module = own["network"]()
        return made
    if described is None:
        raise ValueError(
            f"{folder}: was made with a network of your own; {how_to_pass('network', 'file.py:build')}, or network= a "
            "module of that architecture"
        )
    values = None
    if configuration is not None:
        verify(folder / CONFIGURATION, configuration)
        values = read_json(folder / CONFIGURATION, "RoutedClassifier.save")
        if not isinstance(values, dict):
            raise ValueError(
                f"{folder / CONFIGURATION}: holds {values!r:.80}; expected what RoutedClassifier.save wrote"
            )
    unused = torch.Generator().manual_seed(0)  # of initial weights, not to move the caller's random state
    try:
        choice = choose("network", described, own=own)
        return build_network(choice, generator=unused, saved_configuration=values)
    except ValueError as error:
        raise ValueError(f"{folder / 'router.json'}: {error}") from error


def verify(path: Path, expected: str) -> None:
    """Refuse a file that is not what was written.

    Args:
        path: the file.
        expected: its SHA-256 digest; "" for the weights of format 3, which has none.

    Raises:
        ValueError: for a file that is missing or has another digest.
    """
    if not expected:
        return
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected what RoutedClassifier.save wrote beside router.json")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: is damaged, or of another router: its SHA-256 digest is {found}, and {expected} was expected"
        )
