"""The network of a saved router: built again from its name and options, and from network.json where it has one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_smat.files import read_json
from pyro_smat.inference.deployment.files_together import verified
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
        values = read_json(verified(folder / CONFIGURATION, configuration), "RoutedClassifier.save")
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
