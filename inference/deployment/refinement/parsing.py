"""Deployment modes by name: what a command line or a keyword argument says."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pyro_smat.inference.deployment.refinement.dirichlet import DirichletRefinement
from pyro_smat.inference.deployment.refinement.frank_wolfe import FrankWolfe
from pyro_smat.inference.deployment.refinement.gradient import GradientRefinement
from pyro_smat.inference.deployment.refinement.mode import RefinementMode
from pyro_smat.inference.deployment.refinement.risk_averse import RiskAverse

MODES: dict[str, type] = {mode.name: mode for mode in (FrankWolfe, GradientRefinement, RiskAverse, DirichletRefinement)}


def parse_refinement(text: str) -> RefinementMode | None:
    """A mode from its name and options, None from "none".

    Args:
        text: ``"name"`` or ``"name:option=value,..."``, an option that may be absent takes ``none``.

    Raises:
        ValueError: for an unknown mode or option, or a value that it does not take.

    Example:
        >>> parse_refinement("frank-wolfe:steps=3,max_active=2")
        FrankWolfe(steps=3, max_active=2, tolerance=0.0001, method='vanilla')
    """
    name, _, rest = text.strip().partition(":")
    if name == "none" and not rest:
        return None
    if name not in MODES:
        raise ValueError(f"refine is {text!r}; expected 'none' or one of {', '.join(map(repr, MODES))}")
    kind = MODES[name]
    hints = get_type_hints(kind)
    options = {field.name: hints[field.name] for field in fields(kind)}
    values: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, separator, value = part.partition("=")
        key = key.strip()
        if not separator or key not in options or key in values:
            raise ValueError(
                f"refine is {text!r}: {part.strip()!r} is not an option of {name!r}; expected each at most once of "
                f"{', '.join(f'{option}=...' for option in options)}"
            )
        values[key] = _read(text, key, value.strip(), options[key])
    made: RefinementMode = kind(**values)
    return made


def _read(text: str, key: str, value: str, hint: Any) -> str | int | float | None:
    if get_origin(hint) is Literal:
        return value  # the mode knows which
    kinds = get_args(hint) or (hint,)
    if value == "none" and type(None) in kinds:
        return None
    try:
        return float(value) if float in kinds else int(value)
    except ValueError:
        expected = "a number" if float in kinds else "an integer"
        raise ValueError(f"refine is {text!r}: {key} is {value!r}; expected {expected}") from None
