"""Refinements by name: what a command line, a config or a keyword argument says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_smat.inference.deployment.refinement.mode import RefinementMode
from pyro_smat.registry import build, choose


def parse_refinement(value: str | Mapping[str, Any]) -> RefinementMode | None:
    """A refinement from its name and options, None from "none".

    Args:
        value: ``"name"`` or ``"name:option=value,..."``, an option that may be absent takes ``none``; or a table
            ``{"kind": name, option: value}``.

    Raises:
        ValueError: for an unknown refinement or option (with the nearest known one), or a value that it does not take.

    Example:
        >>> parse_refinement("frank-wolfe:steps=3,max_active=2")
        FrankWolfe(steps=3, max_active=2, tolerance=0.0001, method='vanilla')
    """
    if isinstance(value, str):
        name, separator, rest = value.strip().partition(":")
        if name == "none" and not separator:
            return None
        if name.endswith(".py"):  # "file.py:Name", which has no options in this form
            name, rest = f"{name}:{rest}", ""
        options: dict[str, Any] = {"kind": name}
        for part in rest.split(",") if rest else ():
            key, equals, text = (word.strip() for word in part.partition("="))
            if not equals or key in options:
                raise ValueError(f"refine is {value!r}: found {part.strip()!r}; expected options name=value, each once")
            options[key] = None if text == "none" else text
        value = options
    made: RefinementMode = build(choose("refinement", value, run_files=True))
    return made
