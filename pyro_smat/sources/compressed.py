"""Compressed checkpoints, reading: one tensor at a time is dequantised, or added to its base.

A safetensors file whose metadata says, for every tensor, its codec (pyro_smat/sources/codecs), shape, dtype and the
digest of the base tensor that it is relative to. A base that is not the one it was compressed against is refused:
names, shapes and dtypes when the file is opened, values tensor by tensor when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.sources.checkpoint import Checkpoint, digest, readable
from pyro_smat.sources.codecs import CODECS
from pyro_smat.sources.files import SafetensorsFile

FORMAT = "pyro-smat compressed weights 1"
DENSE = "dense"  # the tensor itself


@dataclass(frozen=True)
class StoredTensor:
    """How a file stores one tensor.

    Attributes:
        codec: a key of ``CODECS``, or "dense".
        shape, dtype: of the tensor that reading gives.
        base_digest: of the base tensor that it is relative to; None where it needs none.
    """

    codec: str
    shape: torch.Size
    dtype: torch.dtype
    base_digest: str | None = None


def joint_digest(stored: Mapping[str, StoredTensor]) -> str | None:
    """One digest of all base tensors that a file is relative to; None when it needs no base."""
    used = [f"{name} {entry.base_digest}" for name, entry in sorted(stored.items()) if entry.base_digest is not None]
    return hashlib.sha256("\n".join(used).encode()).hexdigest()[:32] if used else None


def describe(stored: Mapping[str, StoredTensor]) -> str:
    """The metadata's JSON of the stored tensors."""
    return json.dumps(
        {
            name: {
                "form": entry.codec,
                "shape": list(entry.shape),
                "dtype": str(entry.dtype).removeprefix("torch."),
                "base_digest": entry.base_digest,
            }
            for name, entry in stored.items()
        }
    )


def is_compressed(file: SafetensorsFile) -> bool:
    """Whether a safetensors file was written by :func:`~pyro_smat.sources.compression.compress`."""
    return file.metadata.get("format", "").startswith("pyro-smat compressed")


class CompressedCheckpoint:
    """A file that :func:`~pyro_smat.sources.compression.compress` wrote, read like any other checkpoint.

    ``stored_bytes`` are those of the file alone; the base is counted where it stands.

    Args:
        file: the opened file.
        base: the checkpoint that it was compressed against; files without differences need none.

    Raises:
        ValueError: for a file of another version or with damaged metadata, or a base that is missing or cannot be the
            one that the file is relative to.
    """

    def __init__(self, file: SafetensorsFile, base: Checkpoint | None = None) -> None:
        metadata = file.metadata
        if metadata["format"] != FORMAT:
            raise ValueError(f"{file.path}: format is {metadata['format']!r}; expected {FORMAT!r}: compress it again")
        with readable(file.path):
            self._stored = {name: _parse(entry) for name, entry in json.loads(metadata["tensors"]).items()}
            error = float(metadata["relative_error"])
            loss = "lossless" if metadata["lossless"] == "true" else f"error {100 * error:.2g}%"
            self.format = f"{metadata['form']}, {loss}"
            base_name, base_digest = metadata.get("base", ""), metadata.get("base_digest", "")
        self.origin = file.origin
        self._file, self._base = file, base
        self._verified: set[str] = set()
        self._parts: dict[str, list[str]] = {name: [] for name in self._stored}
        for key in file.names:
            name, _, part = key.rpartition("|")
            if name not in self._parts:
                raise ValueError(
                    f"{file.path}: part {key!r} belongs to no tensor of its list; compress the source again"
                )
            self._parts[name].append(part)
        relative = {name: entry for name, entry in self._stored.items() if entry.base_digest is not None}
        if relative and base is None:
            raise ValueError(
                f"{file.path}: stores differences to {base_name} (digest {base_digest}); pass that checkpoint as base="
            )
        for name, entry in relative.items():
            assert base is not None
            if name not in base.names or base.shape(name) != entry.shape:
                found = f"with shape {tuple(base.shape(name))}" if name in base.names else "missing there"
                raise ValueError(
                    f"{file.path}: stores differences to {base_name} (digest {base_digest}), which {base.origin} is "
                    f"not: tensor {name!r} is {found}, expected {tuple(entry.shape)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    @property
    def stored_bytes(self) -> int:
        return self._file.stored_bytes

    def shape(self, name: str) -> torch.Size:
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._stored[name].dtype

    def read(self, name: str) -> Tensor:
        entry = self._stored[name]
        parts = {part: self._file.read(f"{name}|{part}") for part in self._parts[name]}
        base = self._base_tensor(name, entry)
        with readable(self._file.path):
            if entry.codec == DENSE:
                return parts["values"]
            return CODECS[entry.codec].decode(parts, base).view(entry.shape).to(entry.dtype)

    def _base_tensor(self, name: str, entry: StoredTensor) -> Tensor:
        if entry.base_digest is None:
            return torch.zeros(())
        assert self._base is not None
        base = self._base.read(name)
        if name not in self._verified:
            if digest(base) != entry.base_digest:
                raise ValueError(
                    f"{self.origin}: tensor {name!r} is stored relative to a base with digest {entry.base_digest}; "
                    f"that of {self._base.origin} has {digest(base)}: pass the base that it was compressed against"
                )
            self._verified.add(name)
        return base


def _parse(entry: dict[str, object]) -> StoredTensor:
    codec, shape, dtype, base = (
        entry["form"],
        entry["shape"],
        getattr(torch, str(entry["dtype"])),
        entry["base_digest"],
    )
    if codec not in {*CODECS, DENSE} or not isinstance(dtype, torch.dtype) or not isinstance(shape, list):
        raise ValueError(f"metadata says {entry}; expected a known codec, a shape and a dtype")
    return StoredTensor(str(codec), torch.Size(shape), dtype, None if base is None else str(base))
