"""Skeletons: copies of a network without weights, one for each call that is under way.

``functional_call`` swaps weights into the module for the duration of a call, so a module that two threads call at once
mixes their weights. TaskNetwork therefore borrows a copy for every call. Copies are cheap (their tensors are on the
meta device), there are as many as calls were ever under way at once, and each returns as it was lent: what a forward
pass leaves in its module (a table made at the first call, an activation kept) is gone at the next one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = ("_parameters", "_buffers", "_modules")


def weightless_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters and buffers are on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for part in module.modules():
        for value in vars(part).values():  # what a hook computed, as the old weight_norm does: deepcopy refuses those
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    return copy.deepcopy(module, memo).eval()


def with_constants(module: nn.Module, constants: Mapping[str, Tensor]) -> nn.Module:
    """A weightless module (changed in place) with these weights, say those that a space leaves out."""
    for name, tensor in constants.items():
        owner, _, last = name.rpartition(".")
        part = module.get_submodule(owner)
        if last in part._parameters:
            part._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            part._buffers[last] = tensor
    return module


class Skeletons:
    """A store of equal weightless modules, for any number of threads without a lock.

    Args:
        mould: a weightless module, which is copied and never run.
        change: what is done to every copy before its first use.
    """

    def __init__(self, mould: nn.Module, change: Callable[[nn.Module], nn.Module] = lambda module: module) -> None:
        self._mould = change(copy.deepcopy(mould))
        self._free: deque[_Skeleton] = deque()

    def __deepcopy__(self, memo: dict[int, Any]) -> Skeletons:
        return Skeletons(self._mould)

    def __reduce__(self) -> tuple[Any, ...]:
        return Skeletons, (self._mould,)

    def copy(self) -> nn.Module:
        """A module to keep."""
        return copy.deepcopy(self._mould)

    @contextmanager
    def lend(self) -> Iterator[nn.Module]:
        """A module that nobody else uses meanwhile."""
        try:
            skeleton = self._free.pop()
        except IndexError:
            skeleton = _Skeleton(copy.deepcopy(self._mould))
        try:
            yield skeleton.module
        finally:
            skeleton.reset()
            self._free.append(skeleton)


class _Skeleton:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        parts = [vars(part) for part in module.modules()]
        inner = [attributes[table] for attributes in parts for table in _TABLES]
        self._before = [(attributes, dict(attributes)) for attributes in (*inner, *parts)]

    def reset(self) -> None:
        for current, before in self._before:
            if current.keys() != before.keys() or not all(map(is_, current.values(), before.values())):
                current.clear()
                current.update(before)
