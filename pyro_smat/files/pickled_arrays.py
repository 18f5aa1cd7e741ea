"""Arrays and plain data out of a pickle, without unpickling: an interpreter of a few opcodes that can call nothing.

Old data sets are pickles. ``pickle.load`` runs what the file says; here the file can only say numbers, text, bytes,
lists, tuples, dictionaries and NumPy arrays of numbers. Everything else is refused by name.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NAMES = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.multiarray scalar": "scalar",
    "numpy._core.multiarray scalar": "scalar",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "collections OrderedDict": "mapping",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
}  # what writers of arrays name; each stands for a function below, never for the thing itself


def read_pickled_arrays(file: str | Path | BinaryIO) -> Any:
    """The data in a pickle of protocol 0 to 5: dict, list, tuple, str, bytes, numbers, None and NumPy arrays.

    Text of Python 2 is read as Latin-1. Arrays of objects become lists. Nothing in the file is called or imported.

    Raises:
        ValueError: for an opcode or a name that such data does not need, or a damaged file; says which, and where.

    Example:
        >>> import io, pickle
        >>> read_pickled_arrays(io.BytesIO(pickle.dumps({"labels": [0, 1], "data": np.arange(3, dtype=np.uint8)})))
        {'labels': [0, 1], 'data': array([0, 1, 2], dtype=uint8)}
        >>> read_pickled_arrays(io.BytesIO(pickle.dumps(print)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: pickle names builtins.print at byte ...; expected only arrays and plain data: do not trust the file
    """
    if isinstance(file, str | Path):
        with Path(file).open("rb") as opened:
            try:
                return read_pickled_arrays(opened)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument, position or 0)
        return _finished(machine.stack.pop(), {})
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a whole pickle of arrays and plain data ({error!r}); get the file again") from error


_OPEN = object()  # stands for a thing that is being made


class _Name(str):
    """An admitted name."""


class _Array:
    """An array whose content comes later."""

    value: Any = None


class _Type:
    """A dtype whose byte order comes later."""

    def __init__(self, code: str) -> None:
        self.value = np.dtype(object) if code.startswith("O") else np.dtype(code)
        if self.value.kind not in "biufSUO":
            raise ValueError(f"pickle holds arrays of {self.value}; expected numbers or text")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int) -> None:
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _FIXED:
            stack.append(_FIXED[name])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("LIST", "TUPLE", "DICT"):
            items = self._since_mark()
            stack.append(_pairs(items) if name == "DICT" else list(items) if name == "LIST" else tuple(items))
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            _as(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            _as(stack[-1], dict).update(_pairs(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "POP":
            stack.pop()
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            named = argument if name == "GLOBAL" else " ".join(reversed([stack.pop(), stack.pop()]))
            if named not in _NAMES:
                raise ValueError(
                    f"pickle names {named.replace(' ', '.')} at byte {position}; expected only arrays and plain data: "
                    "do not trust the file"
                )
            stack.append(_Name(_NAMES[named]))
        elif name == "REDUCE":
            arguments = _as(stack.pop(), tuple)
            stack.append(_called(_as(stack.pop(), _Name), arguments))
        elif name == "BUILD":
            state = _as(stack.pop(), tuple)
            _built(stack[-1], state)
        else:
            raise ValueError(
                f"pickle has the opcode {name} at byte {position}; expected only arrays and plain data: do not trust "
                "the file"
            )

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _called(name: _Name, arguments: tuple[Any, ...]) -> Any:
    if name == "reconstruct":
        return _Array()
    if name == "dtype":
        return _Type(_text(arguments[0]))
    if name == "encode":
        return _as(arguments[0], str).encode("latin-1")
    if name == "bytes" and not arguments:
        return b""
    if name == "mapping":
        return dict(arguments[0]) if arguments else {}
    if name == "scalar":
        return np.frombuffer(_raw(arguments[1]), _as(arguments[0], _Type).value)[0].item()
    if name == "frombuffer":
        array = _Array()
        raw, of, shape, order = arguments
        array.value = np.frombuffer(_raw(raw), _as(of, _Type).value).reshape(shape, order=order)
        return array
    raise ValueError(f"pickle calls {name}; expected only arrays and plain data: do not trust the file")


def _built(thing: Any, state: tuple[Any, ...]) -> None:
    if isinstance(thing, _Type):
        if _text(state[1]) in "<>":
            thing.value = thing.value.newbyteorder("<" if _text(state[1]) == "<" else ">")
        return
    shape, of, fortran, raw = state[-4:]
    kind = _as(of, _Type).value
    if kind.kind == "O":
        _as(thing, _Array).value = list(_as(raw, list))
    else:
        values = np.frombuffer(_raw(raw), kind).reshape(shape, order="F" if fortran else "C")
        _as(thing, _Array).value = values


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Arrays in place of what stood for them; a thing that is there twice is made once."""
    if isinstance(value, _Name | _Type):
        raise ValueError("pickle holds a name, not data; expected only arrays and plain data")
    if not isinstance(value, _Array | list | tuple | dict):
        return value
    if id(value) not in done:
        done[id(value)] = _OPEN
        done[id(value)] = _made(value, done)
    if done[id(value)] is _OPEN:
        raise ValueError("pickle holds a list or dictionary inside itself; expected only arrays and plain data")
    return done[id(value)]


def _made(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return _finished(value.value, done) if isinstance(value.value, list) else value.value
    if isinstance(value, dict):
        return {_finished(key, done): _finished(item, done) for key, item in value.items()}
    return type(value)(_finished(item, done) for item in value)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _as(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _raw(value: Any) -> bytes:
    """Bytes; those of Python 2 were read as Latin-1 text."""
    if isinstance(value, bytearray):
        return bytes(value)
    return value.encode("latin-1") if isinstance(value, str) else _as(value, bytes)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
