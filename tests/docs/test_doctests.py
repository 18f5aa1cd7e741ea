"""Every example in a docstring of the package runs, and every name that a first program imports has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import pyro_smat

ROOMS = ("models", "guides", "inference")


def modules() -> Iterator[str]:
    """Names of all modules of the package; in a checkout three of its rooms stand beside the others."""
    rooms = {room.name for room in pkgutil.iter_modules(pyro_smat.__path__[:1])} | set(ROOMS)
    for room in sorted(rooms):
        yield f"pyro_smat.{room}"
        package = importlib.import_module(f"pyro_smat.{room}")
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"pyro_smat.{room}."):
            if not module.name.endswith("__main__"):
                yield module.name


MODULES = tuple(modules())


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


@pytest.mark.parametrize("name", sorted(set(pyro_smat.__all__) - {"__version__"}))
def test_has_an_example(name: str) -> None:
    documented = getattr(pyro_smat, name)
    assert ">>>" in (inspect.getdoc(documented) or ""), f"{name} has no example in its docstring"


def test_only_what_needs_a_downloaded_model_is_skipped() -> None:
    skipped = {name for name in MODULES if "# doctest: +SKIP" in inspect.getsource(importlib.import_module(name))}
    assert skipped <= {"pyro_smat.moe.surgery", "pyro_smat.moe.prediction", "pyro_smat.guides.moe_routing"}
