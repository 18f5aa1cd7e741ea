"""A device that is not there: tensors that say they are on "mps", are kept from the CPU's, and have no float64.

Inside :func:`pretended_mps` PyTorch finds one such device. What is put on it stays in the CPU's memory, is marked, and
so is all that is computed with it. As on the real one, float64 on it is an error, and so is a tensor of the CPU in the
same operation (but scalars and indices). CUDA is an error whatever is asked of it. Networks run unmarked inside
:class:`~pyro_smat.networks.TaskNetwork`, because vmap makes tensors that carry no marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # optimizers import it, and it looks at what is patched below
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_smat.networks.composition import TaskNetwork

MPS = torch.device("mps")
_MARK = "_pretends_to_be_on_mps"
_DEVICE = Tensor.device.__get__
_TO_CPU = {Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_select}
_SET_DATA, _SET_GRAD = Tensor.data.__set__, Tensor.grad.__set__


class WrongDevice(RuntimeError):
    """What the real device would have refused."""


class _Pretending(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE:
            return MPS if _marked(args[0]) else _DEVICE(args[0])
        if func in (torch._C._nn._parse_to, torch.device):
            return func(*args, **kwargs)  # they read the name of a device, and nothing moves
        target = _target(func, args, kwargs)
        args = tuple(_host(value) for value in args)
        kwargs = {name: _host(value) for name, value in kwargs.items()}
        own = [value for value in _tensors((args, kwargs)) if _marked(value)]
        if func == _SET_DATA:
            func(*args, **kwargs)
            _mark(args[0], _marked(args[1]))
            return None
        if func == _SET_GRAD:
            return func(*args, **kwargs)
        moves = func in (Tensor.to, Tensor.copy_, torch.as_tensor, torch.tensor) or func in _TO_CPU
        if own and not moves:
            foreign = [v for v in _tensors((args, kwargs)) if not _marked(v) and v.ndim]
            if foreign and func not in _INDEXING:
                name = getattr(func, "__name__", func)
                raise WrongDevice(f"{name} of tensors on mps and of {tuple(foreign[0].shape)} on cpu")
        result = func(*args, **kwargs)
        there = bool(own) and func not in _TO_CPU if target is None else target.type == "mps"
        if own and func is Tensor.item:
            return result
        for value in _tensors(result):
            if there and value.dtype in (torch.float64, torch.complex128):
                raise WrongDevice(f"{getattr(func, '__name__', func)} makes float64 on mps, which has none")
        if not there and own and isinstance(result, Tensor) and any(result is value for value in own):
            with torch._C.DisableTorchFunction():
                return result.view_as(result)  # the same numbers, on the CPU
        for value in _tensors(result):
            _mark(value, there or (_marked(value) and target is None and func not in _TO_CPU))
        return result


def _target(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call names; None where it names none."""
    found = kwargs.get("device")
    if func is Tensor.to and found is None:
        named = args[1] if len(args) > 1 else kwargs.get("other")
        if isinstance(named, Tensor):
            return MPS if _marked(named) else torch.device("cpu")
        found = named if isinstance(named, str | torch.device) else None
    if func in (torch.tensor, torch.as_tensor, torch.arange, torch.zeros, torch.ones, torch.full) and found is None:
        given = args[0] if args and func is torch.as_tensor else None
        return MPS if isinstance(given, Tensor) and _marked(given) else torch.device("cpu")
    return None if found is None else torch.device(found)


def _host(value: Any) -> Any:
    """What is passed on to PyTorch, which has no such device."""
    if isinstance(value, torch.device) and value.type == "mps":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value == "mps" else value


def _marked(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, "__dict__", {}).get(_MARK, False)


def _mark(value: Tensor, there: bool) -> None:
    value.__dict__[_MARK] = there


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, _host(torch.device(device)))


def _no_cuda(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise WrongDevice(f"torch.cuda.{name} was called, and the device is mps")

    return refuse


def _unmarked(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def inner(self: TaskNetwork, theta: Tensor, x: Tensor) -> Tensor:
        there = {_marked(theta), _marked(x)}
        if len(there) > 1:
            raise WrongDevice("parameters and images of a network are on two devices")
        with torch._C.DisableTorchFunction():
            result = run(self, theta.view_as(theta), x.view_as(x))
        _mark(result, there.pop())
        return result

    return inner


def _plain(run: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's own affair."""

    def inner(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return run(*args, **kwargs)

    return inner


@contextmanager
def pretended_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """One device "mps" and no other; see the module."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "Generator", _Generator)
    for name in ("synchronize", "current_device", "mem_get_info", "memory_reserved", "memory_allocated",
                 "get_rng_state", "set_rng_state", "set_device", "get_device_name", "empty_cache"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, _no_cuda(name))
    state = [torch.zeros(4, dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda value: state.__setitem__(0, value))
    monkeypatch.setattr(TaskNetwork, "__call__", _unmarked(TaskNetwork.__call__))
    monkeypatch.setattr(TaskNetwork, "shared", _unmarked(TaskNetwork.shared))
    monkeypatch.setattr(torch.optim.AdamW, "step", _plain(torch.optim.AdamW.step))
    with _Pretending():
        yield MPS
