"""The vmapped forward of a task network through torch.compile."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pyro_smat.networks.composition import TaskNetwork


class CompiledForward:
    """The compiled forward, by one thread at a time: compiled code belongs to one module."""

    def __init__(self, owner: TaskNetwork) -> None:
        self._owner = owner
        self._run: Any = None
        self._network: nn.Module | None = None
        self._locks: dict[int, threading.Lock] = {}  # by process: a lock that is held at a fork stays held

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledForward, (self._owner,)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            if self._run is None:
                self._network = self._owner.batched.copy()
                self._run = torch.compile(self._owner.vmapped)
            return self._run(self._network, theta, x)
