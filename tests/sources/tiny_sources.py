"""Small networks, their state dicts, and a checkpoint that tells what was read of it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    """Convolution, batch normalisation, linear head ``3``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes)).eval()
        for statistic in (module[1].running_mean, module[1].running_var):
            statistic.copy_(torch.rand(2) + 0.1)
    return module


def weights(seed: int = 0, classes: int = 3) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network(seed, classes).state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Also the sign of zero."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


class WatchedCheckpoint:
    """Remembers the names that were read; ``alive`` counts tensors given out whose memory is still in use."""

    format = "watched"

    def __init__(self, tensors: Mapping[str, Tensor], readable: bool = True) -> None:
        self.tensors, self.readable = dict(tensors), readable
        self.reads: list[str] = []
        self.given: list[weakref.ref[np.ndarray]] = []
        self.origin = "watched"
        self.stored_bytes = 7

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def alive(self) -> int:
        return sum(reference() is not None for reference in self.given)

    def shape(self, name: str) -> torch.Size:
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str) -> Tensor:
        if not self.readable:
            raise AssertionError(f"{name} was read")
        self.reads.append(name)
        memory = self.tensors[name].numpy().copy()  # lives as long as a tensor on it or any view of that does
        self.given.append(weakref.ref(memory))
        return torch.from_numpy(memory)
