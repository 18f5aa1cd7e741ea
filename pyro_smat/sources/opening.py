"""Opening sources: which reader serves a path, a network, a state dict, a compressed file.

Names that DistributedDataParallel, torch.compile or Lightning have put a prefix on can be opened without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.networks.parameters import refuse_lazy
from pyro_smat.sources.checkpoint import Checkpoint, FileStamp, TensorsInMemory
from pyro_smat.sources.compressed import CompressedCheckpoint, is_compressed
from pyro_smat.sources.containers import state_dict_in
from pyro_smat.sources.file_kind import file_kind
from pyro_smat.sources.files import INDEX_SUFFIX, SafetensorsFile, ShardedSafetensors, open_torch_file

Source = str | Path | nn.Module | Mapping[str, Tensor] | Checkpoint
WRAPPERS = ("module.", "_orig_mod.")  # in front: of DistributedDataParallel and of torch.compile
INNER_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")  # anywhere


def open_checkpoint(source: Source, base: Checkpoint | None = None, *, entry: str | None = None) -> Checkpoint:
    """Open a source; headers are read, tensors are not.

    What a file is, is seen in its first bytes, whatever its name ends in.

    Args:
        source: a safetensors file, a ``*.safetensors.index.json``, a folder with one of either, a file of tensors that
            PyTorch saved (also inside ``{"state_dict": ...}``, ``{"model": ...}`` and the like), a network, a state
            dict, or a checkpoint that is open already.
        base: what a file that stores differences (:func:`~pyro_smat.sources.compression.compress`) is relative to.
        entry: of a PyTorch file with several state dicts (weights and their moving average) the one that is meant.

    Raises:
        ValueError: for a missing, truncated or foreign file (a pointer of Git LFS, a web page, an archive, ...), a
            pickle of anything but tensors, a state dict of something else or several of them, a file of differences
            without its base, lazy layers that have seen no image, or anything else; each is named.

    Example:
        >>> open_checkpoint({"weight": torch.ones(2, 3)}).shape("weight")
        torch.Size([2, 3])
    """
    if isinstance(source, nn.Module):
        refuse_lazy(source, "source")
        origin = f"{type(source).__name__} in memory"
        return TensorsInMemory(state_dict_in(source.state_dict(), origin), origin)
    if isinstance(source, Mapping):
        return TensorsInMemory(state_dict_in(source, "state dict in memory", entry), "state dict in memory")
    if not isinstance(source, str | Path):
        if isinstance(source, Checkpoint):
            return source
        hint = ": give the path of the file, or torch.load(file, weights_only=True)" if hasattr(source, "read") else ""
        raise ValueError(
            f"source is a {type(source).__name__}, {source!r:.60}; expected a path, a network, a state dict or an open "
            f"checkpoint{hint}"
        )
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    FileStamp.of(path)  # it is there
    if path.name.endswith(INDEX_SUFFIX):
        return ShardedSafetensors(path)
    kind = file_kind(path)
    if kind == "index":
        return ShardedSafetensors(path)
    if kind != "safetensors" and not (kind == "unknown" and path.suffix == ".safetensors"):
        return open_torch_file(path, entry)
    if entry is not None:
        raise ValueError(f"{path}: entry is {entry!r}, but a safetensors file holds one state dict; expected none")
    file = SafetensorsFile(path)
    if is_compressed(file):
        return CompressedCheckpoint(file, base)
    if not file.names:
        raise ValueError(f"{path}: holds no tensors; expected a state dict (names to tensors)")
    return file


def _in_folder(folder: Path) -> Path:
    """The checkpoint of a folder as Hugging Face writes it: its one index, else its one file."""
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{folder}: it is a folder with {len(found)} files {pattern}, such as {found[0].name}; expected one: "
                "give the path of the one that you mean"
            )
    raise ValueError(
        f"{folder}: no such file; it is a folder with 0 files *{INDEX_SUFFIX}, expected a checkpoint file or a folder "
        "with one index or one checkpoint"
    )


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a checkpoint file, all of it: for small files.

    Nothing is ever unpickled beyond tensors. The tensors are memory-mapped: copy them before you write into them.

    Raises:
        ValueError: for a missing, truncated or foreign file, a pickle of anything but tensors, a file without any, or
            a tensor that holds NaN.
    """
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.float().isnan().any()):
            raise ValueError(
                f"{path}: tensor {name!r} holds NaN; expected numbers: a damaged file, or a failed training"
            )
    return tensors


def unwrapped(name: str) -> str:
    """A tensor's name without what DistributedDataParallel (in front), torch.compile, activation checkpointing and
    fully sharded data parallelism (anywhere) put into it."""
    while name.startswith(WRAPPERS):
        name = name.removeprefix(next(prefix for prefix in WRAPPERS if name.startswith(prefix)))
    for wrapper in INNER_WRAPPERS:
        name = name.removeprefix(wrapper).replace(f".{wrapper}", ".")
    return name


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


def without_wrappers(source: Source, prefix: str = "") -> Checkpoint:
    """A source saved from inside a wrapper, under the names of the network itself.

    Left away are the prefixes of DistributedDataParallel, torch.compile, activation checkpointing and fully sharded
    data parallelism.

    Args:
        source: as :func:`open_checkpoint` takes it.
        prefix: what stands before the names beside that, such as ``"model."`` in files of Lightning. Tensors without it
            (of a loss, a metric) are left out.

    Raises:
        ValueError: as :func:`open_checkpoint`, for a prefix that no name has, and when two names become one.
    """
    checkpoint = open_checkpoint(source)
    bare = {name: unwrapped(name) for name in checkpoint.names}
    if prefix:
        bare = {name: unwrapped(short.removeprefix(prefix)) for name, short in bare.items() if short.startswith(prefix)}
        if not bare:
            raise ValueError(
                f"{checkpoint.origin}: no name begins with {prefix!r}; expected the prefix of names such as "
                f"{checkpoint.names[0]!r}"
            )
    stored = {short: name for name, short in bare.items()}
    if len(stored) < len(bare):
        both = sorted(set(bare) - set(stored.values()))
        raise ValueError(f"{checkpoint.origin}: {both} are there with and without a prefix; expected one of the two")
    return _Renamed(checkpoint, stored)
