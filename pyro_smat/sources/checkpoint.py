"""Checkpoint: named tensors that are read one at a time, whatever holds them.

First stop of every source. Opening reads names, shapes and dtypes; values are read when somebody asks for one tensor,
and files are memory-mapped, so a checkpoint takes no memory before that and the system may take its pages back after.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor


@runtime_checkable
class Checkpoint(Protocol):
    """What the library needs to know of a source.

    Attributes:
        origin: where it comes from, for messages: a path, or what is in memory.
        format: what holds it, for tables.
        names: of its tensors, in the order of the checkpoint.
        stored_bytes: what it takes where it is: bytes of its files, or of its tensors in memory.
    """

    @property
    def origin(self) -> str: ...

    @property
    def format(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def stored_bytes(self) -> int: ...

    def shape(self, name: str) -> torch.Size:
        """Shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """Its values, on the CPU; perhaps a view of the file or of the network: never write into it."""
        ...


@dataclass(frozen=True)
class FileStamp:
    """Size and time of a file when it was opened: a file that is rewritten later is noticed, not mixed in half."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file.

        Raises:
            ValueError: when there is no such file.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected a .safetensors or .pt checkpoint")
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raises:
        ValueError: when the file is gone or was written to since.
        """
        status = self.path.stat() if self.path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise ValueError(f"{self.path}: was written to since it was opened; open the library again")


class TensorsInMemory:
    """A state dict: of a live network, or as ``torch.load`` maps it from a file.

    The tensors are not copied. Of those in memory a digest is taken at once and compared whenever one is read, so that
    any later change is refused: training, BatchNorm in training mode, ``.data``, a numpy view. PyTorch's own counters
    of changes do not see all of these.

    Args:
        tensors: names to tensors.
        origin: for messages.
        format: for tables.
        stamp: of the file that the tensors are mapped from, which is looked at instead.

    Raises:
        ValueError: for anything but a non-empty dict of dense tensors by name.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], origin: str, format: str = "in memory", stamp: FileStamp | None = None
    ) -> None:
        if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
            raise ValueError(f"{origin}: holds {type(tensors).__name__}; expected a state dict (names to tensors)")
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized:
                kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
                raise ValueError(f"{origin}: tensor {name!r} is {kind}; expected dense floating-point weights")
        self.origin, self.format, self._stamp = origin, format, stamp
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._digests = {} if stamp is not None else {name: digest(t) for name, t in self._tensors.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return TensorsInMemory, (self._tensors, self.origin, self.format, self._stamp)  # a copy is looked at anew

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    @property
    def stored_bytes(self) -> int:
        if self._stamp is not None:
            return self._stamp.size
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        if self._stamp is not None:
            self._stamp.check()
        if self._tensors[name].is_meta:
            raise ValueError(
                f"{self.origin}: tensor {name!r} is on the meta device, where tensors have no values; expected weights "
                "on the CPU or a GPU: make the network without torch.device('meta')"
            )
        tensor = self._tensors[name].cpu()
        if self._stamp is None and digest(tensor) != self._digests[name]:
            raise ValueError(
                f"{self.origin}: tensor {name!r} was changed in place since the source was opened; sources are frozen: "
                "open a copy of the network (copy.deepcopy) or of its state dict"
            )
        return tensor


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, 32 hexadecimal digits of it; of the meta device, without bytes."""
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if not tensor.is_meta:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        content.update(plain.reshape(-1).contiguous().view(torch.uint8).numpy())
    return content.hexdigest()[:32]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a damaged or foreign file makes its reader raise becomes a ValueError that names it."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({error}); expected a complete file written by safetensors"
        ) from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{named[1]} is in it" if named else "it is a pickle of something other than tensors"
        raise ValueError(
            f"{path}: {what}, which only running its pickle could make, and that is never done; expected tensors "
            "alone: where you trust the file, save its state dict with safetensors"
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in any way: IndexError, KeyError, struct.error, ...
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {error}); expected a complete file"
        ) from error
