"""Remembered: objects that know what they were constructed with, so that a router made in Python can be saved."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_smat.registry.choice import Choice, is_plain
from pyro_smat.registry.entries import Factory, find, name_of
from pyro_smat.registry.kinds import KINDS
from pyro_smat.registry.options import kind_of, options_of, parameters_of


class Remembered:
    """A base class whose objects keep the arguments of their constructor, as they were passed."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" not in vars(cls):
            return
        construct = cls.__init__

        @functools.wraps(construct)
        def remember(self: Any, *args: Any, **kwargs: Any) -> None:
            given, unnamed = _arguments(construct, self, *args, **kwargs)
            if "_constructed_with" not in vars(self):  # the outermost constructor runs first
                vars(self).update(_constructed_with=given, _unnamed=unnamed)
            passed_on = {k: v for k, v in given.items() if any(v is one for one in vars(self)["_unnamed"])}
            vars(self)["_constructed_with"] = passed_on | vars(self)["_constructed_with"]  # a base has names for *args
            construct(self, *args, **kwargs)

        cls.__init__ = remember  # type: ignore[method-assign]

    @property
    def constructed_with(self) -> Mapping[str, Any]:
        """Arguments of the constructor by name, those with defaults only where they were passed."""
        if is_dataclass(self):  # its constructor is made after the class
            return {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return vars(self).get("_constructed_with", {})


def describe(kind: str, made: Any, **known: Any) -> Choice:
    """The choice that makes such an object again; matrices among its arguments are left to its state dict.

    A class that a registered function makes says so: ``registered_as = "cost_aware"``.

    Args:
        kind: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        made: an object of a registered class, or of one of the user's own, which is named by its class.
        known: options that are known already.

    Raises:
        ValueError: for an object that does not remember how it was constructed, or an argument that JSON cannot say.

    Example:
        >>> from pyro_smat.models.priors import DirichletPrior
        >>> describe("prior", DirichletPrior(3, concentration=0.5)).to_dict()
        {'kind': 'dirichlet', 'concentration': 0.5}
    """
    factory: Factory = type(made)
    if not isinstance(made, Remembered):
        raise ValueError(
            f"{kind} {factory.__name__} does not say how it was made; expected a subclass of the library's"
        )
    name_of_function = vars(factory).get("registered_as")
    registered = factory if name_of_function is None else find(kind, name_of_function)
    options: dict[str, Any] = dict(known)
    for name, parameter in parameters_of(factory).items():
        if name in known or name in KINDS[kind].supplied or name not in options_of(kind, registered).model_fields:
            continue
        value = _described(made.constructed_with.get(name, parameter.default))
        if is_plain(value):
            options[name] = value
        elif not isinstance(value, Tensor) and value is not parameter.default:
            raise ValueError(
                f"{kind} {factory.__name__} was made with {name}={value!r}, which a saved router cannot say; expected "
                "numbers, strings, lists of these, tensors, or registered things"
            )
    return Choice(kind, name_of(kind, registered) or _place(type(made)), options, registered)


def _arguments(construct: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Arguments of a constructor by name, those of ``**options`` by their own, and those of ``*args``."""
    signature = inspect.signature(construct)
    found = dict(list(signature.bind(*args, **kwargs).arguments.items())[1:])
    unnamed: tuple[Any, ...] = ()
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL:
            unnamed = found.pop(name, ())
    return found, unnamed


def _described(value: Any) -> Any:
    """Registered things as choices, also inside tuples; vectors as numbers; everything else as it is."""
    if isinstance(value, Tensor) and value.ndim < 2:
        value = value.tolist()
    if isinstance(value, tuple | list):
        return tuple(map(_described, value))
    kind = next((of for of in KINDS if _is_of(value, of)), None)
    if kind is not None:
        return describe(kind, value)
    made = kind_of(type(value))
    return value if made is None else Choice(made, "given", {}, find(made, "given"))  # data, kept beside the config


def _is_of(value: Any, kind: str) -> bool:
    return any(kind_of(base) == kind for base in type(value).__mro__) and isinstance(value, Remembered)


def _place(cls: type) -> str:
    try:
        file = Path(inspect.getfile(cls)).name
    except (TypeError, OSError):  # a notebook, or a prompt
        file = "own.py"
    return f"{file}:{cls.__qualname__}"
