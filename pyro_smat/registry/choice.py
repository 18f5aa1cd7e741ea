"""Choice: a kind and a name with options, as a config says it; and building what it means."""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError, core_schema

from pyro_smat.registry.entries import Factory, find, is_file, name_of
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
        if name.startswith("_") or name in ("of", "kind", "options", "factory"):  # of a copy that has none yet
            raise AttributeError(name)
        if name not in self.options:
            raise AttributeError(f"{self.kind!r} has no option {name!r}; it has {', '.join(self.options)}")
        return self.options[name]

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"kind": ..., option: ...}``."""
        return {"kind": self.kind, **{k: _plain(v) for k, v in self.options.items()}}


class Of:
    """What kind of thing a config field holds: ``prior: Annotated[Choice, Of("prior", "uniform")]``.

    Args:
        of: a key of :data:`~pyro_smat.registry.kinds.KINDS`.
        default: the name that a table without ``kind`` means.
    """

    def __init__(self, of: str, default: str | None = None) -> None:
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
        name = kind if is_file(kind) else name_of(self.of, factory) or kind  # an alias becomes the name
        return Choice(self.of, name, {k: v for k, v in kept.items() if k in given or is_plain(v)}, factory)


def choose(kind: str, value: Any, *, own: Mapping[str, Factory] | None = None, run_files: bool = False) -> Choice:
    """A checked choice from a name or a table, as a config would read it.

    Raises:
        ValueError: for an unknown name or option, or a value of another type.

    Example:
        >>> choose("episode_loss", {"kind": "clipped_nll", "clip": 3.0}).options["clip"]
        3.0
    """
    try:
        return TypeAdapter(Annotated[Choice, Of(kind)]).validate_python(
            value, context={"own": own or {}, "run_files": run_files}
        )
    except ValidationError as error:
        raise ValueError(f"{kind}: {error.errors()[0]['msg']}") from error


def parse(text: str) -> dict[str, Any]:
    """The table that a word of a command line means: ``"name"`` or ``"name:option=value,..."``.

    Values are TOML where they can be read as such, ``none`` is None, and all others are text.

    Raises:
        ValueError: for something that is not an option=value, or an option that is there twice.

    Example:
        >>> parse("frank_wolfe:steps=3,max_active=none")
        {'kind': 'frank_wolfe', 'steps': 3, 'max_active': None}
    """
    name, _, rest = text.strip().partition(":")
    if name.endswith(".py"):  # "file.py:Name", perhaps with options after another colon
        inner, _, rest = rest.partition(":")
        name = f"{name}:{inner}"
    table: dict[str, Any] = {"kind": name}
    for part in rest.split(",") if rest else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key in table:
            raise ValueError(f"{text!r}: found {part.strip()!r}; expected options name=value, each once")
        table[key] = None if value == "none" else _value(value)
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(choice: Choice, supplied: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """What a choice means: its factory with its options and with what it asks for of the supplied values.

    Args:
        choice: checked options; those that are choices themselves are taken from the supplied values, where they have
            one of that name, or built from them.
        supplied: at least what the factory needs of ``KINDS[kind].supplied``; values are taken as they are needed.

    Raises:
        ValueError: for something that is asked for and cannot be had, or a file that was not passed.
    """
    factory, kind = choice.factory or find(choice.of, choice.kind), KINDS[choice.of]
    arguments: dict[str, Any] = {}
    parameters = parameters_of(factory)
    if kind.call and set(kind.call) <= set(parameters):  # the function itself, not what makes it
        options = {name: _built(value, supplied) for name, value in choice.options.items()}
        return update_wrapper(partial(factory, **options), factory)
    own = inspect.signature(factory).parameters
    for name, parameter in parameters.items():
        if name in choice.options and name not in own and choice.options[name] == parameter.default:
            continue  # it would go on to a base, which has it anyway; the class may have its own for it
        if name in choice.options:
            given = name in supplied and isinstance(choice.options[name], Choice)  # made already, for all who ask
            arguments[name] = supplied[name] if given else _built(choice.options[name], supplied)
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


def is_plain(value: Any) -> bool:
    """Whether JSON can say it, or a choice does."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, int | float | str | bool | Choice | None)
