"""Large tensors on the CPU in memory that is used again: in pages of 2 MiB, kept from one training step to the next.

The first touch of fresh memory costs more than a product that fills it, by the page, and the C library gives a large
tensor back to the system whenever it is freed. So the largest ones of a step (task parameters, their gradient, that of
the experts) live in mappings of our own. When the last tensor on a mapping is gone, the mapping is kept for the next
tensor that fits. All mappings together never exceed what tensors on them once took at the same time by more than a
quarter, and the system may take what is not in use when memory is short.

Tensors that PyTorch's own kernels make are PyTorch's: with ``THP_MEM_ALLOC_ENABLE=1`` in the environment, as the
commands set it, it asks for pages of 2 MiB too.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE = 32 * 2**20  # bytes of a tensor; below, the C library hands out memory that was used before
ROOM = 1.25  # of the peak: tensors of several sizes take turns, and would push out one another's mappings


def large_empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor on the CPU, of the dtype of ``like``; where it is large, on Linux, in kept memory.

    Example:
        >>> large_empty((2, 3), torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    size = prod(shape) * like.element_size()
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=like.dtype)
    memory = KEPT.take(size)
    lease = memoryview(memory)  # what tensors hold, through the buffer protocol; it ends with the last of them
    weakref.finalize(lease, KEPT.give_back, memory).atexit = False
    return torch.frombuffer(lease, dtype=like.dtype, count=prod(shape)).view(shape)


class KeptMemory:
    """Mappings that no tensor is on, the oldest first.

    Attributes:
        in_use: bytes of mappings that tensors are on.
        peak: the most that these were.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.RLock()  # a tensor may be collected, and give its mapping back, inside of `take`
        self.in_use = self.peak = 0

    @property
    def kept(self) -> int:
        """Bytes of mappings that no tensor is on."""
        return sum(map(len, self._free))

    def take(self, size: int) -> mmap.mmap:
        """The smallest kept mapping of ``size`` to twice as many bytes, or a fresh one.

        Raises:
            RuntimeError: when there is no memory, in PyTorch's words.
        """
        with self._lock:
            fits = [memory for memory in self._free if size <= len(memory) <= 2 * size]
            memory = min(fits, key=len) if fits else None
            if memory is not None:
                self._free.remove(memory)
            self.in_use += size if memory is None else len(memory)
            self.peak = max(self.peak, self.in_use)
            while self._free and self.in_use + self.kept > ROOM * self.peak:
                self._free.pop(0)
        if memory is None:
            try:
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                with self._lock:
                    self.in_use -= size
                raise RuntimeError(f"can't allocate memory: {size:,} bytes ({error})") from error
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def unlock(self) -> None:
        """A lock of its own for a forked process, in which nobody would release the old one."""
        self._lock = threading.RLock()

    def give_back(self, memory: mmap.mmap) -> None:
        """Keep a mapping that the last tensor has left."""
        with suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_FREE)  # the system may take the pages when it needs them, and else they stay
        with self._lock:
            self.in_use -= len(memory)
            self._free.append(memory)


KEPT = KeptMemory()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=KEPT.unlock)
