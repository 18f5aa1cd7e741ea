"""World: the processes that train together, and the few things they say to each other.

Whoever started them (torchrun, accelerate, Lightning Fabric, mpirun), they meet in torch.distributed's default group.
Without one, or in a world of one, everything here is the identity. Training asks for a share of the episodes, gathers
losses and sums gradients; nothing else is exchanged, least of all the sources.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

JOINING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what launchers leave in the environment


@dataclass(frozen=True)
class World:
    """This process among those that train together; ``World()`` is alone whatever group there is.

    Attributes:
        rank: number of this process, 0 to size - 1.
        size: number of processes.

    Example:
        >>> World.current()
        World(rank=0, size=1)
        >>> World(rank=1, size=3).share(8)  # shares follow each other and differ by one at most
        range(2, 5)
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Everyone in the default process group, or this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of 0, ..., count - 1: the parts of all processes follow each other."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, *columns: Tensor) -> tuple[tuple[Tensor, ...], slice]:
        """The entries of all processes in the order of their ranks, and which of them are this process's own.

        The gradient flows to one's own entries alone: a loss of the whole batch, differentiated in every process, gives
        gradients whose sum over processes is that of the whole batch.

        Args:
            columns: each ``(n,)``; n may differ between processes.

        Returns:
            the columns ``(N,)``, and the slice of one's own.
        """
        rows = len(columns[0])
        if self.size == 1:
            return columns, slice(0, rows)
        table = torch.stack(columns, dim=1).detach()
        sizes = [int(n) for n in self._all(torch.tensor([rows]))]
        padded = table.new_zeros(max(sizes), len(columns))
        padded[:rows] = table
        parts = [part[:size].unbind(1) for part, size in zip(self._all(padded), sizes, strict=True)]
        parts[self.rank] = columns
        start = sum(sizes[: self.rank])
        whole = tuple(
            torch.cat([part.to(own.dtype) for part in of_all])
            for own, of_all in zip(columns, zip(*parts, strict=True), strict=True)
        )
        return whole, slice(start, start + rows)

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """Weighted mean of the values of all processes, without gradient."""
        if self.size == 1:
            return value.detach()
        total = self._summed(torch.cat([value.detach().flatten() * weight, value.new_tensor([weight])]))
        return (total[:-1] / total[-1]).view_as(value)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by the sum over processes: call it between the backward pass and clipping.

        A parameter that has no gradient in any process keeps none.
        """
        if self.size == 1:
            return
        by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in parameters:
            by_kind.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for own in by_kind.values():
            found = torch.tensor([p.grad is not None for p in own]).to(own[0])
            parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in own]
            *sums, having = self._summed(torch.cat([*parts, found])).split([*map(len, parts), len(own)])
            for parameter, gradient, processes in zip(own, sums, having.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if processes else None

    def share_gradient(self, value: Tensor) -> Tensor:
        """The value, of which the gradients of all processes add up to one: for terms that every process has whole."""
        return value if self.size == 1 else value / self.size + (value - value / self.size).detach()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of process 0."""
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().to(_meeting_place(tensor)).contiguous()
            with _talking():
                distributed.broadcast(sent, 0)
            tensor.detach().copy_(sent)

    def check_alike(self, what: str, *values: object) -> None:
        """Refuse processes that differ.

        Raises:
            ValueError: in every process, when their ``values`` are not the same text.
        """
        digest = hashlib.sha256("\n".join(map(str, values)).encode()).digest()
        (digests,), _ = self.gather(torch.tensor([int.from_bytes(digest[:7], "big")]))
        if digests.unique().numel() > 1:
            raise ValueError(
                f"{what} is not the same in the {self.size} processes; expected the same config, files and code "
                "everywhere"
            )

    def _all(self, tensor: Tensor) -> list[Tensor]:
        sent = tensor.to(_meeting_place(tensor)).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        with _talking():
            distributed.all_gather(parts, sent)
        return [part.to(tensor.device) for part in parts]

    def _summed(self, tensor: Tensor) -> Tensor:
        sent = tensor.to(_meeting_place(tensor))
        with _talking():
            distributed.all_reduce(sent)
        return sent.to(tensor.device)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """The processes that a launcher started meet inside the block: over NCCL on GPUs, over gloo elsewhere.

    Nothing happens without a launcher, or where a group is there already.

    Args:
        device: "cuda" becomes the GPU of this process's local rank.

    Raises:
        ValueError: for a device with a number of its own: the processes would share one GPU.
    """
    meets = all(name in os.environ for name in JOINING) and not distributed.is_initialized()
    if not meets:
        yield device
        return
    if device.type == "cuda":
        if device.index is not None and int(os.environ["WORLD_SIZE"]) > 1:
            raise ValueError(f"device is {device} and there are several processes; expected 'cuda': each takes its own")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")
    yield device
    distributed.destroy_process_group()  # not after an error: the others may be waiting in a collective


def _meeting_place(tensor: Tensor) -> torch.device:
    """Where a tensor has to be for the group to pass it on."""
    backend = str(distributed.get_backend())
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else tensor.device


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason: Sequence[str] = str(error).splitlines() or [type(error).__name__]
        raise ConnectionError(
            f"another process of this run has ended or cannot be reached ({reason[0]}); its own message says why"
        ) from error
