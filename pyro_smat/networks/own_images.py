"""Networks that write to their images (``x -= mean``): each of T networks, and the caller, keep theirs.

Whether a network does is seen at its first run; only one that does is given copies from then on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_smat.networks.expanded import stored_part
from pyro_smat.networks.task_products import recording_a_graph

_SHARED = "single memory location"  # of PyTorch's error where a network writes to images that tasks share

_LOCKS: dict[int, threading.Lock] = {}  # by process: a lock that is held at a fork stays held


class OwnImages:
    """What is known of one network.

    Attributes:
        overwrites: whether it writes to its images; None before it has run.

    Example:
        >>> images, own = torch.ones(2), OwnImages()
        >>> own.run(lambda x: x.mul_(3.0), images), images, own.overwrites
        (tensor([3., 3.]), tensor([1., 1.]), True)
    """

    def __init__(self) -> None:
        self.overwrites: bool | None = None

    def run(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``network(images)``, after which the images are what they were."""
        if self.overwrites:
            return network(images.clone())
        if self.overwrites is False or not _can_be_compared(images):
            return network(images)
        with _LOCKS.setdefault(os.getpid(), threading.Lock()):  # another thread may run on the same images
            return network(images.clone()) if self.overwrites else self._first_run(network, images)

    def _first_run(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        stored = stored_part(images)
        kept = stored.clone()
        try:
            result = network(images)
        except Exception as error:
            if not self._restore(stored, kept) and _SHARED not in str(error):
                raise
            self.overwrites = True
            return network(images.clone())
        if self._restore(stored, kept):
            return network(images.clone())
        self.overwrites = False
        return result

    def _restore(self, stored: Tensor, kept: Tensor) -> bool:
        """Whether the images were written to; they are then put back."""
        if torch.equal(stored, kept):
            return False
        self.overwrites = True
        with torch.no_grad():
            stored.copy_(kept)
        return True


def _can_be_compared(images: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
    return not (traced or images.is_meta or images.requires_grad or recording_a_graph(images))
