"""Skeletons: copies of a network without weights, one for each call that is under way.

``functional_call`` swaps weights into the module for the duration of a call, so a module that two threads call at once
mixes their weights. TaskNetwork therefore borrows a copy for every call. Copies are cheap (their tensors are on the
meta device), there are as many as calls were ever under way at once, and each returns as it was lent: what a forward
pass leaves in its module (a table made at the first call, an activation kept) is gone at the next one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._attributes = [(part, _attributes_of(part)) for part in module.modules()]

    def reset(self) -> None:
        for part, attributes in self._attributes:
            for table in _TABLES:
                _restore(vars(part)[table], attributes[table])
            _restore(vars(part), {**attributes, **{table: vars(part)[table] for table in _TABLES}})


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    return {**vars(module), **{table: dict(vars(module)[table]) for table in _TABLES}}


def _restore(current: dict[str, Any], before: dict[str, Any]) -> None:
    if len(current) != len(before) or any(current.get(name, _TABLES) is not value for name, value in before.items()):
        current.clear()
        current.update(before)
