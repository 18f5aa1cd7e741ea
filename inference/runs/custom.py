"""Models and guides of the user's own: ``--model my_model.py:MyModel --guide my_guide.py:MyGuide``.

A class is constructed with what its constructor asks for by name; what cannot be had, and sites that do not fit
together, are errors that name it before any training starts.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.sites import sample_sites

MODEL_NEEDS = (
    "forward",
    "basis",
    "logits",
    "network",
    "sources",
    "source_names",
    "prior",
    "experts",
    "scale",
    "metric",
)
GUIDE_NEEDS = ("forward", "posterior", "anneal")


def load_class(reference: str) -> type:
    """The class that ``"path/to/file.py:Class"`` names; runs the file.

    Raises:
        ValueError: when the reference is not of that form, or there is no such file or class.
    """
    where, separator, name = reference.rpartition(":")
    path = Path(where)
    if not separator or path.suffix != ".py":
        raise ValueError(f"{reference!r} is not of the form file.py:Class, e.g. my_model.py:MyModel")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the Python file that defines {name}")
    spec = importlib.util.spec_from_file_location(f"pyro_smat_custom_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints of the file look their module up
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise ValueError(f"{path}: has no class {name!r}; its classes are {classes}")
    return found


def construct(cls: type, available: Mapping[str, Any]) -> Any:
    """``cls(...)`` with those of the available values that its constructor has parameters for.

    Raises:
        ValueError: naming a parameter without default that is not available.
    """
    parameters = _parameters(cls)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in available]
    if missing:
        raise ValueError(
            f"{cls.__name__} asks for {', '.join(map(repr, missing))}, which cannot be had; its constructor may use "
            f"{', '.join(sorted(available))}, or defaults"
        )
    return cls(**{name: value for name, value in available.items() if name in parameters})


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Parameters of a constructor, and of those of its bases as long as ``**options`` go on to them."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        found = {p.name: p for p in own} | found
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


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
