"""Entries: what is registered, found by kind and name. The only place that runs a file which a config names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyro_smat.registry.kinds import KINDS

Factory = Callable[..., Any]
F = TypeVar("F", bound=Factory)

_entries: dict[str, dict[str, Factory]] = {kind: {} for kind in KINDS}
_aliases: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
_read: set[str] = set()


def register(kind: str, name: str, *aliases: str) -> Callable[[F], F]:
    """Register a class or function under a kind and a name.

    Args:
        kind: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        name: in configs and reports.
        aliases: further names that configs may use.

    Raises:
        ValueError: for an unknown kind, or a name that is taken.

    Example:
        >>> @register("episode_loss", "half_nll")
        ... def half_nll(distribution, labels, mask):
        ...     return -0.5 * distribution.log_prob(labels)
        >>> find("episode_loss", "half_nll").__name__
        'half_nll'
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; expected one of {', '.join(KINDS)}")

    def add(factory: F) -> F:
        for taken in (name, *aliases):
            other = _entries[kind].get(_aliases[kind].get(taken, taken))
            if other is not None and _place(other) != _place(factory):
                raise ValueError(f"{kind} {taken!r} is registered already, by {_place(other)}; choose another name")
        _entries[kind][name] = factory
        _aliases[kind] |= dict.fromkeys(aliases, name)
        return factory

    return add


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind, sorted."""
    _read_room(kind)
    return tuple(sorted(_entries[kind]))


def name_of(kind: str, factory: Factory) -> str | None:
    """The name under which a class or function is registered, None where it is not."""
    _read_room(kind)
    return next((name for name, one in _entries[kind].items() if one is factory), None)


def is_file(name: str) -> bool:
    """Whether a name is of the form "file.py:Name"."""
    return name.rpartition(":")[0].endswith(".py")


def find(kind: str, name: str, *, own: Mapping[str, Factory] | None = None, run_files: bool = False) -> Factory:
    """The class or function of a kind and name.

    Args:
        kind: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        name: a registered name, an alias, or "file.py:Name".
        own: kind -> a class or function of the caller's own, which takes the place of any "file.py:Name" of that kind.
        run_files: whether "file.py:Name" may be run. Only what a user names (a config, the command line) may; never
            what a saved folder names.

    Raises:
        ValueError: for an unknown name (with the nearest known one), or a file that may not or cannot be run.
    """
    if is_file(name):
        if own is not None and kind in own:
            return own[kind]
        if not run_files:
            raise ValueError(
                f"it was made with a {kind} of your own, {name}, and loading never runs a file: "
                f"{how_to_pass(kind, name)}"
            )
        return load_file(name)
    _read_room(kind)
    found = _entries[kind].get(_aliases[kind].get(name, name))
    prefix, separator, rest = name.partition(":")
    if found is None and separator and prefix in _entries[kind]:  # "timm:NAME" is the entry "timm" of that NAME
        return partial(_entries[kind][prefix], rest)
    if found is None:
        near = difflib.get_close_matches(name, (*_entries[kind], *_aliases[kind]), n=1)
        hint = f"did you mean {near[0]!r}? Known are" if near else "expected one of"
        raise ValueError(f'there is no {kind} {name!r}; {hint} {", ".join(names(kind))}, or "file.py:Name"')
    return found


def how_to_pass(kind: str, name: str = "file.py:Name") -> str:
    """How a user hands over what a saved folder may not run, in Python and on a command line.

    Example:
        >>> how_to_pass("prior", "mine.py:Mine")
        "pass own={'prior': Mine} (command line: --own prior=mine.py:Mine)"
    """
    return f"pass own={{{kind!r}: {name.rpartition(':')[2]}}} (command line: --own {kind}={name})"


def load_file(reference: str) -> Factory:
    """What ``"path/to/file.py:Name"`` names; runs the file.

    Raises:
        ValueError: when the reference is not of that form, or there is no such file, class or function.
    """
    where, separator, name = reference.rpartition(":")
    path = Path(where)
    if not separator or path.suffix != ".py":
        raise ValueError(f"{reference!r} is not of the form file.py:Name, e.g. my_model.py:MyModel")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the Python file that defines {name}")
    spec = importlib.util.spec_from_file_location(f"pyro_smat_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints of the file look their module up
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
        raise ValueError(f"{path}: has no class or function {name!r}; it has {', '.join(own) or 'none'}")
    return found


def _read_room(kind: str) -> None:
    """Import every file of a room once: that is how its entries come to be registered."""
    if kind in _read:
        return
    package = importlib.import_module(KINDS[kind].room)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.ispkg:
            importlib.import_module(module.name)
    _read.add(kind)


def _place(factory: Factory) -> str:
    return f"{inspect.unwrap(factory).__module__}.{getattr(factory, '__qualname__', type(factory).__qualname__)}"
