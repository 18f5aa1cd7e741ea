"""Opening sources: which reader serves a path, a network, a state dict, a compressed file.

Names that DistributedDataParallel or torch.compile have put a prefix on can be opened without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.sources.checkpoint import Checkpoint, TensorsInMemory
from pyro_smat.sources.compressed import CompressedCheckpoint, is_compressed
from pyro_smat.sources.files import INDEX_SUFFIX, SafetensorsFile, ShardedSafetensors, open_torch_file

Source = str | Path | nn.Module | Mapping[str, Tensor] | Checkpoint
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


def open_checkpoint(source: Source, base: Checkpoint | None = None) -> Checkpoint:
    """Open a source; headers are read, tensors are not.

    Args:
        source: a ``.safetensors`` file, a ``*.safetensors.index.json`` or its folder, any other file as PyTorch's
            ``.pt`` (tensors only), a network, a state dict, or a checkpoint that is open already.
        base: what a file that stores differences (:func:`~pyro_smat.sources.compression.compress`) is relative to.

    Raises:
        ValueError: for a missing, truncated or foreign file, a pickle of anything but tensors, a state dict of
            something else, or a file of differences without its base.

    Example:
        >>> open_checkpoint({"weight": torch.ones(2, 3)}).shape("weight")
        torch.Size([2, 3])
    """
    if isinstance(source, nn.Module):
        return TensorsInMemory(source.state_dict(), f"{type(source).__name__} in memory")
    if isinstance(source, Mapping):
        return TensorsInMemory(source, "state dict in memory")
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
        return ShardedSafetensors(path)
    if path.suffix != ".safetensors":
        return open_torch_file(path)
    file = SafetensorsFile(path)
    if is_compressed(file):
        return CompressedCheckpoint(file, base)
    if not file.names:
        raise ValueError(f"{path}: holds no tensors; expected a state dict (names to tensors)")
    return file


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a checkpoint file, all of it: for small files.

    Nothing is ever unpickled beyond tensors. The tensors are memory-mapped: copy them before you write into them.

    Raises:
        ValueError: for a missing, truncated or foreign file, a pickle of anything but tensors, or a file without any.
    """
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.names}


def unwrapped(name: str) -> str:
    """A tensor's name without the prefixes of DistributedDataParallel (in front) and torch.compile (anywhere)."""
    while name.startswith(WRAPPERS):
        name = name.removeprefix(next(prefix for prefix in WRAPPERS if name.startswith(prefix)))
    return name.replace("._orig_mod.", ".")


class _Renamed:
    """A checkpoint under other names."""

    def __init__(self, checkpoint: Checkpoint, stored_names: Mapping[str, str]) -> None:
        self._checkpoint, self._stored = checkpoint, dict(stored_names)
        self.origin, self.format = checkpoint.origin, checkpoint.format

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    @property
    def stored_bytes(self) -> int:
        return self._checkpoint.stored_bytes

    def shape(self, name: str) -> torch.Size:
        return self._checkpoint.shape(self._stored[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._checkpoint.dtype(self._stored[name])

    def read(self, name: str) -> Tensor:
        return self._checkpoint.read(self._stored[name])


def without_wrappers(source: Source) -> Checkpoint:
    """A source saved from inside DistributedDataParallel or torch.compile, under the names of the network itself.

    Raises:
        ValueError: as :func:`open_checkpoint`, and when two names become one.
    """
    checkpoint = open_checkpoint(source)
    stored = {unwrapped(name): name for name in checkpoint.names}
    if len(stored) < len(checkpoint.names):
        both = sorted(set(checkpoint.names) - set(stored.values()))
        raise ValueError(f"{checkpoint.origin}: {both} are there with and without a prefix; expected one of the two")
    return _Renamed(checkpoint, stored)
