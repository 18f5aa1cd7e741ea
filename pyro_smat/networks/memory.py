"""Memory: how many bytes activations take and may take, by which TaskNetwork cuts its tasks into chunks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_smat.networks.evaluation_mode import EvaluationMode

CPU_CHUNK_BYTES = 32 * 2**20  # activations of one chunk on a CPU: small chunks stay in cache and out of page faults
CPU_MEMORY_LIMIT = 8 * 2**30
MEASURED_IMAGES = 16


def memory_of(device: torch.device) -> int:
    """Bytes that activations may take: half of the free memory on a CUDA GPU, 8 GiB elsewhere."""
    return _free_memory(device) // 2 if device.type == "cuda" else CPU_MEMORY_LIMIT


def chunk_limit(limit: int, device: torch.device) -> int:
    """Bytes that the activations of one chunk may take, of ``limit`` for all."""
    return min(limit, CPU_CHUNK_BYTES) if device.type == "cpu" else limit


def new_table(shape: tuple[int, ...], like: Tensor, limit: int | None = None) -> Tensor:
    """An empty tensor of the dtype of ``like``: on its device where it fits, else on the CPU, else in a mapped file.

    The file is temporary and gone with the tensor.

    Args:
        shape: of the tensor.
        like: gives dtype and device.
        limit: bytes in the device's memory; default :func:`memory_of`.

    Example:
        >>> new_table((2, 3), torch.zeros(1), limit=0).fill_(1.0)  # from a file
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    size = prod(shape) * like.element_size()
    if size <= (memory_of(like.device) if limit is None else limit):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if like.device.type != "cpu" and size <= CPU_MEMORY_LIMIT:
        return torch.empty(shape, dtype=like.dtype)
    with tempfile.TemporaryDirectory(prefix="pyro-smat-") as folder:  # the mapping outlives the name
        path = os.path.join(folder, "table")
        return torch.from_file(path, shared=True, size=prod(shape), dtype=like.dtype).view(shape)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def measured_bytes(network: nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> int:
    """Bytes that activations take for one image, by a forward pass of the first images ``(n, *input)``.

    Twice the outputs of the modules without children, since operations inside keep as much again; or those of all
    operations, where a network calls functions instead of modules.
    """
    images = images[:MEASURED_IMAGES]
    inside = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal inside
        if isinstance(output, Tensor):
            inside += output.numel() * output.element_size()

    hooks = [part.register_forward_hook(count) for part in network.modules() if not list(part.children())]
    counter = _OutputBytes()
    try:
        with EvaluationMode(network, batched=False, gradient=False), counter:
            run(images)
    finally:
        for hook in hooks:
            hook.remove()
    return max(2 * inside, counter.total) // len(images)


class _OutputBytes(TorchFunctionMode):
    """Sums the bytes of what operations return, without views and what is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not output._is_view() and all(output is not argument for argument in args):
            self.total += output.numel() * output.element_size()
        return output


def _free_memory(device: torch.device) -> int:
    """Bytes free on a GPU, with those that PyTorch's allocator keeps for reuse."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
