"""Choice: a kind and a name with options, as a config says it; and building what it means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from pyro_smat.registry.entries import Factory, find, is_file
from pyro_smat.registry.kinds import KINDS
from pyro_smat.registry.options import accepts, options_of, parameters_of


@dataclass(frozen=True)
class Choice:
    """One registered thing with its options.

    Attributes:
        of: what it is: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        kind: a registered name, or "file.py:Name".
        options: of its constructor, defaults filled in.
        factory: the class or function; None while a saved config names a file that was not passed.
    """

    of: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    factory: Factory | None = field(default=None, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("of", "kind", "options", "factory"):
            raise AttributeError(name)  # of a copy that is being made, which has no attributes yet
        if name not in self.options:
            raise AttributeError(f"{self.kind!r} has no option {name!r}; it has {', '.join(self.options)}")
        return self.options[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"kind": ..., option: ...}``."""
        return {"kind": self.kind, **{k: _plain(v) for k, v in self.options.items()}}


class _OfKind:
    """The pydantic schema of a :class:`Choice` of one kind."""

    def __init__(self, of: str, default: str | None) -> None:
        self.of, self.default = of, default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self.read, serialization=core_schema.plain_serializer_function_ser_schema(lambda choice: choice.to_dict())
        )

    def read(self, value: Any, info: ValidationInfo) -> Choice:
        context = info.context or {}
        if isinstance(value, Choice):
            return value
        values = {"kind": value} if isinstance(value, str) else value
        if not isinstance(values, Mapping):
            raise PydanticCustomError("choice", "{text}", {"text": "expected a name, or {kind = ..., option = ...}"})
        kind = values.get("kind", self.default)
        if not isinstance(kind, str):
            raise PydanticCustomError("choice", "{of} without a kind", {"of": self.of})
        given = {k: v for k, v in values.items() if k != "kind"}
        own = context.get("own", {})
        try:
            if is_file(kind) and self.of not in own and not context.get("run_files", False):
                return Choice(self.of, kind, given)
            factory = find(self.of, kind, own=own, run_files=context.get("run_files", False))
            schema = options_of(self.of, factory)
            options = schema.model_validate(given, context=context)
        except ValidationError as error:
            raise PydanticCustomError("choice", "{text}", {"text": _told(kind, error, schema)}) from error
        except ValueError as error:
            raise PydanticCustomError("choice", "{text}", {"text": str(error)}) from error
        kept = {name: getattr(options, name) for name in schema.model_fields}
        return Choice(self.of, kind, {k: v for k, v in kept.items() if k in given or _is_plain(v)}, factory)


def Of(kind: str, default: str | None = None) -> Any:
    """The type of a config field that holds a thing of a kind.

    Args:
        kind: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        default: the name that a table without ``kind`` means.
    """
    return Annotated[Choice, _OfKind(kind, default)]


def choose(kind: str, value: Any, *, own: Mapping[str, Factory] | None = None, run_files: bool = False) -> Choice:
    """A checked choice from a name or a table, as a config would read it.

    Raises:
        ValueError: for an unknown name or option, or a value of another type.

    Example:
        >>> choose("episode_loss", {"kind": "clipped_nll", "clip": 3.0}).options["clip"]
        3.0
    """
    try:
        return TypeAdapter(Of(kind)).validate_python(value, context={"own": own or {}, "run_files": run_files})
    except ValidationError as error:
        raise ValueError(f"{kind}: {error.errors()[0]['msg']}") from error


def build(choice: Choice, supplied: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """What a choice means: its factory with its options and with what it asks for of the supplied values.

    Args:
        choice: checked options; those that are choices themselves are built from the same supplied values.
        supplied: at least what the factory needs of ``KINDS[kind].supplied``; values are taken as they are needed.

    Raises:
        ValueError: for something that is asked for and cannot be had, or a file that was not passed.
    """
    factory, kind = choice.factory or find(choice.of, choice.kind), KINDS[choice.of]
    arguments: dict[str, Any] = {}
    for name, parameter in parameters_of(factory).items():
        if name in choice.options:
            arguments[name] = _built(choice.options[name], supplied)
        elif name in supplied and (name in kind.supplied or parameter.default is parameter.empty):
            arguments[name] = supplied[name]
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"{kind.name} {choice.kind!r} asks for {name!r}, which cannot be had here; there is "
                f"{', '.join(sorted(set(supplied) & set(kind.supplied))) or 'nothing'}"
            )
    return factory(**arguments)


def takes(choice: Choice, name: str) -> bool:
    """Whether what a choice means has a parameter of that name."""
    return accepts(choice.factory or find(choice.of, choice.kind), name)


def _built(value: Any, supplied: Mapping[str, Any]) -> Any:
    if isinstance(value, Choice):
        return build(value, supplied)
    if isinstance(value, tuple | list):
        return tuple(_built(part, supplied) for part in value)
    return value


def _told(kind: str, error: ValidationError, schema: type[BaseModel]) -> str:
    parts = []
    for problem in error.errors():
        path = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = sorted(schema.model_fields)
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'no options'}"
            parts.append(f"{kind!r} has no option {path!r}; {hint}")
        elif problem["type"] == "missing":
            parts.append(f"{kind!r} needs the option {path!r}")
        else:
            parts.append(f"{path}: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r})")
    return "; ".join(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.to_dict()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | str | bool | Choice | None)
