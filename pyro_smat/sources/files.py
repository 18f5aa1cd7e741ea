"""Checkpoint files: one safetensors file, many with an index, or tensors saved by PyTorch.

Each is a :class:`~pyro_smat.sources.checkpoint.Checkpoint`: its header is read at once, its tensors when asked for.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pyro_smat.sources.checkpoint import FileStamp, TensorsInMemory, readable
from pyro_smat.sources.containers import state_dict_in
from pyro_smat.sources.file_kind import LARGEST_INDEX, file_kind

INDEX_SUFFIX = ".safetensors.index.json"
_ZIP = b"PK\x03\x04"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """One ``.safetensors`` file, memory-mapped.

    Attributes:
        metadata: the text that was stored with the tensors.

    Raises:
        ValueError: for a missing, truncated or foreign file, a header of absurd length, or a dtype that PyTorch lacks.
    """

    format = "safetensors"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.origin = str(path)
        self._stamp = FileStamp.of(self.path)
        file_kind(self.path)  # before anything is allocated by what the header claims
        with readable(self.path):
            self._handle = safe_open(self.path, "pt")
            self.metadata: dict[str, str] = self._handle.metadata() or {}
            slices = {name: self._handle.get_slice(name) for name in self._handle.keys()}  # noqa: SIM118 (not a dict)
            self._shapes = {name: torch.Size(piece.get_shape()) for name, piece in slices.items()}
            stored = {name: str(piece.get_dtype()) for name, piece in slices.items()}
        for name, dtype in stored.items():
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{path}: tensor {name!r} is stored as {dtype}; expected one of {', '.join(_DTYPES)}: save it as "
                    "floating-point weights"
                )
        self._dtypes = {name: _DTYPES[dtype] for name, dtype in stored.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return SafetensorsFile, (self.path,)  # an open file cannot be copied: a copy opens it again

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @property
    def stored_bytes(self) -> int:
        return self._stamp.size

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str) -> Tensor:
        self._stamp.check()
        with readable(self.path):
            return self._handle.get_tensor(name)


class ShardedSafetensors:
    """Several ``.safetensors`` files under one ``*.safetensors.index.json``; one of them is open at a time.

    Args:
        index: the index, or the folder that holds it (and no other).

    Raises:
        ValueError: for a folder without one index, an index that is none, shards that are missing or unreadable, or
            tensors that their shard lacks; all of these are listed.
    """

    format = "safetensors, sharded"

    def __init__(self, index: str | Path) -> None:
        path = Path(index)
        if path.is_dir():
            found = sorted(path.glob(f"*{INDEX_SUFFIX}"))
            if len(found) != 1:
                raise ValueError(
                    f"{path}: no such file; it is a folder with {len(found)} files *{INDEX_SUFFIX}, expected a "
                    "checkpoint file or a folder with one index"
                )
            path = found[0]
        self.origin = str(path)
        self._folder = path.parent
        stamp = FileStamp.of(path)
        if stamp.size > LARGEST_INDEX:
            raise ValueError(f"{path}: has {stamp.size:,} bytes; expected an index of at most {LARGEST_INDEX:,}")
        with readable(path):
            content: Any = json.loads(path.read_bytes())
        where = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise ValueError(f'{path}: has no "weight_map"; expected an index of tensor names to shards')
        self._shard_of: dict[str, str] = where
        foreign = sorted({file for file in where.values() if not file.endswith(".safetensors")})
        if foreign:
            raise ValueError(
                f"{path}: is an index of shards such as {foreign[0]}; expected shards in safetensors: load the model "
                "with the library that wrote it and save it again (save_pretrained(..., safe_serialization=True))"
            )
        outside = sorted({file for file in where.values() if Path(file).name != file})
        if outside:
            raise ValueError(f"{path}: shard {outside[0]!r} is not beside the index; expected names of files, no paths")
        missing = sorted({file for file in where.values() if not (self._folder / file).is_file()})
        if missing:
            raise ValueError(f"{path}: shards {missing} are missing; expected them beside the index: complete the copy")
        self._shapes: dict[str, torch.Size] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._stamps: dict[str, FileStamp] = {}
        for file in dict.fromkeys(where.values()):
            self._stamps[file] = FileStamp.of(self._folder / file)
            self._read_header(file)
        self._bytes = stamp.size + sum(shard.size for shard in self._stamps.values())
        self._open: SafetensorsFile | None = None

    def _read_header(self, file: str) -> None:
        shard = SafetensorsFile(self._folder / file)
        names = [name for name, holder in self._shard_of.items() if holder == file]
        absent = sorted(set(names) - set(shard.names))
        if absent:
            raise ValueError(f"{self.origin}: shard {file} has no tensors {absent}; expected what the index says")
        self._shapes |= {name: shard.shape(name) for name in names}
        self._dtypes |= {name: shard.dtype(name) for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shard_of)

    @property
    def stored_bytes(self) -> int:
        return self._bytes

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def read(self, name: str) -> Tensor:
        stamp = self._stamps[self._shard_of[name]]
        stamp.check()
        if self._open is None or self._open.path != stamp.path:
            self._open = None  # closed before the next one opens
            self._open = SafetensorsFile(stamp.path)
        return self._open.read(name)


def open_torch_file(path: str | Path, entry: str | None = None) -> TensorsInMemory:
    """A file of tensors that PyTorch saved, memory-mapped where its format allows (files before PyTorch 1.6 do not).

    Nothing is ever unpickled beyond tensors (``weights_only=True``). The state dict is taken out of the usual
    containers (:func:`~pyro_smat.sources.containers.state_dict_in`).

    Args:
        path: the file, whatever its suffix.
        entry: which of several state dicts.

    Raises:
        ValueError: for a missing, truncated or foreign file, a pickle of anything but tensors (the class is named), or
            a file without a state dict, or with several.
    """
    path = Path(path)
    stamp = FileStamp.of(path)
    with path.open("rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP and path.suffix != ".safetensors"
    with path.open("rb") as file, readable(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of unusual pickle protocols before it refuses the file
        # By its path torch would take a misnamed file for what its suffix says; only by its path it is mapped.
        content: Any = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    weights = state_dict_in(content, str(path), entry)
    return TensorsInMemory(weights, str(path), "torch" if mapped else "torch (in memory)", stamp)
