"""Refinements by name: what a command line, a config or a keyword argument says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_smat.inference.deployment.refinement.mode import RefinementMode
from pyro_smat.registry import build, choose, parse


def parse_refinement(value: str | Mapping[str, Any]) -> RefinementMode | None:
    """A refinement from its name and options, None from "none".

    Args:
        value: ``"name"`` or ``"name:option=value,..."`` (see :func:`~pyro_smat.registry.parse`), or a table.

    Raises:
        ValueError: for an unknown refinement or option (with the nearest known one), or a value that it does not take.

    Example:
        >>> parse_refinement("frank-wolfe:steps=3,max_active=2")
        FrankWolfe(steps=3, max_active=2, tolerance=0.0001, method='vanilla')
    """
    table = parse(value) if isinstance(value, str) else value
    if table == {"kind": "none"}:
        return None
    made: RefinementMode = build(choose("refinement", table, run_files=True))
    return made
