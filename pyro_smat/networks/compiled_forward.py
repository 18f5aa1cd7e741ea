"""The vmapped forward of a task network through torch.compile."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_smat.networks.running_statistics import tracks_statistics

if TYPE_CHECKING:
    from pyro_smat.networks.composition import TaskNetwork


class CompiledForward:
    """The compiled forward, by one thread at a time: compiled code belongs to one module."""

    def __init__(self, owner: TaskNetwork) -> None:
        self._owner = owner
        self._opaque = [name for name, part in owner.batched.copy().named_modules() if tracks_statistics(part)]
        self._run: Any = None
        self._network: nn.Module | None = None
        self._locks: dict[int, threading.Lock] = {}  # by process: a lock that is held at a fork stays held

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledForward, (self._owner,)

    def refuse_opaque_statistics(self) -> None:
        """Raises:
        ValueError: for layers whose running statistics would have no gradient.
        """
        if self._opaque:
            raise ValueError(
                f"modules {self._opaque} have running statistics and a forward of their own, which has no gradient in "
                "the statistics when compiled; expected plain BatchNorm or InstanceNorm layers, or compile=False"
            )

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            if self._run is None:
                self._network = self._owner.batched.copy()
                self._run = torch.compile(self._owner.vmapped)
            return self._run(self._network, theta, x)
