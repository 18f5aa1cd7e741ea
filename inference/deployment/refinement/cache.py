"""The last few adapted tasks, by a digest of their support: adapting to the same support again is a look-up."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class CacheInfo(NamedTuple):
    """Counts of a cache, as those of :func:`functools.lru_cache`."""

    hits: int
    misses: int
    size: int
    current: int


class TaskCache[T]:
    """The ``size`` results that were used last, for any number of threads.

    Args:
        size: >= 0; 0 keeps nothing.

    Raises:
        ValueError: for a negative size.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"cache_size is {size}; expected the number of adapted tasks to keep, 0 for none")
        self.size, self._hits, self._misses = size, 0, 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._locks: dict[int, threading.Lock] = {}  # by process: a lock that is held at a fork stays held

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for this key, or is made now; threads that make it at once all get the first one."""
        with self._lock():
            if key in self._kept:
                self._hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            self._misses += 1
        made = make()
        if not self.size:
            return made
        with self._lock():
            made = self._kept.setdefault(key, made)
            self._kept.move_to_end(key)
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return made

    def info(self) -> CacheInfo:
        with self._lock():
            return CacheInfo(self._hits, self._misses, self.size, len(self._kept))

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_locks": {}, "_kept": OrderedDict()}  # a copy starts empty


def support_digest(images: Tensor, labels: Sequence[str] | Sequence[int]) -> bytes:
    """SHA-256 of images (shape, dtype and bytes) and labels (the integer 1 is not the name "1")."""
    pixels = images.detach().cpu().contiguous()
    digest = hashlib.sha256(repr((tuple(pixels.shape), pixels.dtype, list(labels))).encode())
    digest.update(pixels.view(torch.uint8).numpy().data)
    return digest.digest()
