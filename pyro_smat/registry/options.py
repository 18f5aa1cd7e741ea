"""Options: what a config may say of a registered thing, read off the signature of its constructor."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial, reduce
from operator import or_
from pathlib import Path
from types import GenericAlias, SimpleNamespace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, create_model

from pyro_smat.registry.entries import Factory
from pyro_smat.registry.kinds import KINDS

_PLAIN = (int, float, str, bool, Path, type(None))


class Supply(Mapping[str, Any]):
    """What the program supplies to constructors, each made when it is first taken.

    Args:
        makers: name -> a function that makes the value.

    Example:
        >>> supply = Supply(num_sources=lambda: 3)
        >>> supply["num_sources"]
        3
    """

    def __init__(self, **makers: Callable[[], Any]) -> None:
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def but(self, **values: Any) -> Supply:
        """The same with other values."""
        kept = {name: partial(self.__getitem__, name) for name in self if name not in values}
        return Supply(**kept, **{name: partial(lambda value: value, value) for name, value in values.items()})


def parameters_of(factory: Factory) -> dict[str, inspect.Parameter]:
    """Parameters of a function or constructor, annotations resolved; those of bases too, where ``**options`` go on."""
    if not inspect.isclass(factory):
        return {k: p for k, p in _resolved(factory, skip=0).items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    found: dict[str, inspect.Parameter] = {}
    for base in factory.__mro__:
        if "__init__" not in vars(base):
            continue
        own = _resolved(vars(base)["__init__"], skip=1)
        found = own | found
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return {k: p for k, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def accepts(factory: Factory, name: str) -> bool:
    """Whether a constructor has a parameter of that name."""
    return name in parameters_of(factory)


@lru_cache(maxsize=512)
def options_of(kind: str, factory: Factory) -> type[BaseModel]:
    """The pydantic model of what a config may say: one field for each parameter that the program does not supply.

    Raises:
        ValueError: for a parameter without default that a config cannot say and the program does not supply.
    """
    fields: dict[str, Any] = {}
    for name, parameter in parameters_of(factory).items():
        if name in KINDS[kind].supplied or name in KINDS[kind].call:
            continue
        annotation = _sayable(Any if parameter.annotation is parameter.empty else parameter.annotation)
        if annotation is None and parameter.default is parameter.empty:
            raise ValueError(
                f"{_name(factory)} asks for {name!r}, which cannot be had; its constructor may use "
                f"{', '.join(sorted(KINDS[kind].supplied)) or 'nothing of the program'}, and options that a config can "
                "say: numbers, strings, booleans, lists of these, and other registered things"
            )
        if annotation is not None:
            fields[name] = (annotation, _default(parameter))
    return create_model(_name(factory), __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def _default(parameter: inspect.Parameter) -> Any:
    """The default of an option; that of its kind where a constructor has none to give."""
    if parameter.default not in (parameter.empty, None):
        return parameter.default
    kinds = {kind_of(part) for part in (parameter.annotation, *get_args(parameter.annotation))} - {None}
    default = next((KINDS[kind].default for kind in kinds if kind is not None), None)
    if default is not None:
        from pyro_smat.registry.choice import choose  # a choice holds options

        return choose(next(iter(kinds)) or "", default)
    return ... if parameter.default is parameter.empty else None


def _resolved(function: Callable[..., Any], skip: int) -> dict[str, inspect.Parameter]:
    signature = list(inspect.signature(function).parameters.values())[skip:]
    plain = function.func if isinstance(function, partial) else function
    hints: dict[str, Any] = {}
    for p in signature:  # one by one: a name that only type checkers import leaves the others as they are
        with suppress(NameError):
            one = SimpleNamespace(__annotations__={p.name: p.annotation})
            if p.annotation is not p.empty:
                hints |= typing.get_type_hints(one, inspect.unwrap(plain).__globals__, include_extras=True)
    found = {}
    for p in signature:
        hint = hints.get(p.name, Any if isinstance(p.annotation, str) else p.annotation)
        found[p.name] = p.replace(annotation=hint)
    return found


def _sayable(annotation: Any) -> Any:
    """The part of a type that TOML and JSON can say; None for nothing."""
    from pyro_smat.registry.choice import Choice, Of  # a choice holds options

    if annotation in _PLAIN or annotation is Any:
        return annotation
    kind = kind_of(annotation)
    if kind is not None:
        return Annotated[Choice, Of(kind, KINDS[kind].default)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _sayable(arguments[0])
        return None if inner is None else Annotated[(inner, *arguments[1:])]
    if origin in (Union, types.UnionType):
        members = [part for part in map(_sayable, arguments) if part is not None]
        told = [part for part in members if part is not type(None)]
        return reduce(or_, members) if told else None
    if origin is tuple:
        members = [argument if argument is Ellipsis else _sayable(argument) for argument in arguments]
        return None if None in members else GenericAlias(tuple, tuple(members))
    if origin in (list, Sequence):
        inner = _sayable(arguments[0])
        return None if inner is None else GenericAlias(tuple, (inner, ...))
    if origin in (dict, Mapping):
        key, value = map(_sayable, arguments)
        return None if None in (key, value) else GenericAlias(dict, (key, value))
    return None


def kind_of(annotation: Any) -> str | None:
    """The kind whose things an annotation asks for, such as "prior" for RoutingPrior."""
    if not inspect.isclass(annotation):
        return None
    place = f"{annotation.__module__}:{annotation.__qualname__}"
    return next((kind.name for kind in KINDS.values() if kind.base == place), None)


def _name(factory: Factory) -> str:
    return getattr(factory, "__name__", type(factory).__name__)
