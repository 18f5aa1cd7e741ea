r"""Compressing a source: each tensor in the smallest codec that keeps a stated error.

The error of a source theta that reads back as theta', relative to its base theta_0 (to zero where there is none), is

.. math:: \|\theta' - \theta\|_2 \,/\, \|\theta - \theta_0\|_2

the part of what fine-tuning changed that is lost. Every tensor keeps the tolerance by itself, so the whole does too; a
tensor that a codec cannot bring within it, or not make smaller, is stored as it is.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor

from pyro_smat.sources.checkpoint import Checkpoint
from pyro_smat.sources.codecs import CODECS, Parts
from pyro_smat.sources.codecs.sparse import bits
from pyro_smat.sources.compressed import DENSE, FORMAT, StoredTensor, describe, digest, joint_digest
from pyro_smat.sources.opening import Source, open_checkpoint


@dataclass(frozen=True)
class CompressionResult:
    """What compressing one source gave.

    Attributes:
        path: of the file.
        codec: that was asked for.
        bytes_before, bytes_after: of the source where it is stored and of the file (the base is not counted).
        relative_error: of the floating-point tensors, measured; the module says relative to what.
        max_error: largest absolute error of a weight.
        lossless: whether every tensor reads back bit for bit.
        codecs: codec -> number of tensors; "dense" are those stored as they are.
    """

    path: Path
    codec: str
    bytes_before: int
    bytes_after: int
    relative_error: float
    max_error: float
    lossless: bool
    codecs: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.bytes_before / self.bytes_after


@dataclass(frozen=True)
class _Encoded:
    """One tensor in one codec, and what decoding it loses."""

    codec: str
    parts: Parts
    squared_error: float = 0.0
    max_error: float = 0.0
    exact: bool = True

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def compress(
    source: Source, path: str | Path, base: Source | None = None, codec: str = "auto", tolerance: float = 0.0
) -> CompressionResult:
    """Write a source in a small codec; :func:`~pyro_smat.sources.opening.open_checkpoint` reads it back.

    ========== =================================================================================== ========
    codec       stores                                                                              lossless
    ========== =================================================================================== ========
    sparse     the source's own values where they differ from the base                             yes
    truncated  as sparse, without the smallest differences                                         no
    low_rank   for every matrix, a truncated singular value decomposition of the difference        no
    int8       8-bit weights with a scale for every output channel; needs no base                  no
    int8_delta 8-bit differences                                                                   no
    auto       for every tensor the smallest of these within the tolerance
    ========== =================================================================================== ========

    Tensors that the chosen codec does not suit are stored sparse or as they are, without loss. The compressed tensors
    are held in memory until the file is written; "low_rank" and "auto" decompose every matrix, which takes a while.

    Args:
        source: the checkpoint; ``base`` and it are not changed.
        path: of the ``.safetensors`` file to write; replaced as a whole when it exists.
        base: usually theta_pre; the codecs of differences need it, now and whenever the file is read.
        codec: one of the table.
        tolerance: largest relative error of every tensor; 0 allows lossless codecs only.

    Raises:
        ValueError: for an unknown codec, a lossy one without tolerance, one of differences without base, a base that
            shares no tensor with the source, weights that are not finite, or a path that is the source's or the base's.
    """
    path = Path(path)
    wanted = tuple(CODECS) if codec == "auto" else (codec,)
    if codec not in {"auto", *CODECS}:
        raise ValueError(f"codec is {codec!r}; expected one of {['auto', *CODECS]}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; expected a relative error in [0, 1)")
    if codec != "auto" and not CODECS[codec].lossless and not tolerance:
        raise ValueError(f"codec {codec!r} loses something and tolerance is 0; expected a relative error, such as 0.01")
    if codec != "auto" and CODECS[codec].relative and base is None:
        raise ValueError(f"codec {codec!r} stores differences; expected the base that they are to")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors")
    reference = None if base is None else open_checkpoint(base)
    checkpoint = open_checkpoint(source, reference)
    for opened in (checkpoint, reference):
        if opened is not None and Path(opened.origin).resolve() == path.resolve():
            raise ValueError(f"{path}: is what is read; expected another file to write")
    comparable = _comparable(checkpoint, reference)
    if reference is not None and not comparable:
        raise ValueError(f"{reference.origin}: no tensor of {checkpoint.origin} is there; expected its base")

    stored: dict[str, StoredTensor] = {}
    tensors: dict[str, Tensor] = {}
    chosen: list[_Encoded] = []
    squared_norm = 0.0
    for name in checkpoint.names:
        tensor = checkpoint.read(name)
        zero = reference.read(name) if reference is not None and name in comparable else None
        squared_norm += _squared_norm(checkpoint, name, tensor, zero)
        best = _smallest(tensor, zero, wanted, tolerance)
        relative = best.codec != DENSE and CODECS[best.codec].relative
        stored[name] = StoredTensor(
            best.codec, tensor.shape, tensor.dtype, digest(zero) if relative and zero is not None else None
        )
        tensors |= {f"{name}|{part}": values for part, values in best.parts.items()}
        chosen.append(best)
    squared_error = sum(best.squared_error for best in chosen)
    relative_error = sqrt(squared_error / squared_norm) if squared_norm else 0.0
    max_error = max(best.max_error for best in chosen)
    lossless = all(best.exact for best in chosen)
    metadata = {
        "format": FORMAT,
        "form": codec,
        "tolerance": repr(tolerance),
        "lossless": str(lossless).lower(),
        "relative_error": repr(relative_error),
        "max_error": repr(max_error),
        "tensors": describe(stored),
    }
    if (joint := joint_digest(stored)) is not None and reference is not None:
        metadata |= {"base": Path(reference.origin).name, "base_digest": joint}
    _write(path, tensors, metadata)
    return CompressionResult(
        path=path,
        codec=codec,
        bytes_before=checkpoint.stored_bytes,
        bytes_after=path.stat().st_size,
        relative_error=relative_error,
        max_error=max_error,
        lossless=lossless,
        codecs=MappingProxyType(Counter(best.codec for best in chosen)),
    )


def _comparable(checkpoint: Checkpoint, base: Checkpoint | None) -> set[str]:
    """Names of the tensors that have a base."""
    if base is None:
        return set()
    return {name for name in set(checkpoint.names) & set(base.names) if checkpoint.shape(name) == base.shape(name)}


def _squared_norm(checkpoint: Checkpoint, name: str, tensor: Tensor, base: Tensor | None) -> float:
    """``|tensor - base|^2``; 0 for integers, which are never approximated."""
    if not tensor.is_floating_point():
        return 0.0
    difference = tensor.double() if base is None else tensor.double() - base.double()
    squared = float(difference.square().sum())
    if not squared < float("inf"):
        raise ValueError(f"{checkpoint.origin}: tensor {name!r} holds NaN or infinite weights; expected finite ones")
    return squared


def _smallest(tensor: Tensor, base: Tensor | None, wanted: tuple[str, ...], tolerance: float) -> _Encoded:
    """The tensor in the smallest of the wanted codecs; where none of them suits, sparse or as it is.

    Integers, which are constants, are stored as they are: then a base of weights alone is enough.
    """
    dense = _Encoded(DENSE, {"values": tensor})
    if not tensor.is_floating_point():
        return dense
    tried = [name for name in dict.fromkeys(("sparse", *wanted)) if CODECS[name].lossless or tolerance]
    encoded = [_encode(tensor, base, name, tolerance) for name in tried]
    smaller = [one for one in encoded if one is not None and one.bytes < dense.bytes]
    asked = [one for one in smaller if one.codec in wanted]
    return min(asked or smaller, key=lambda one: one.bytes, default=dense)


def _encode(tensor: Tensor, base: Tensor | None, name: str, tolerance: float) -> _Encoded | None:
    """One codec of a tensor, with its error measured by decoding; None where it does not suit or exceeds it."""
    codec = CODECS[name]
    if codec.relative and base is None:
        return None
    origin = base if codec.relative and base is not None else torch.zeros(())
    parts = codec.encode(tensor, origin, tolerance)
    if parts is None:
        return None
    decoded = codec.decode(parts, origin).to(tensor.dtype)
    if torch.equal(bits(decoded), bits(tensor)):
        return _Encoded(name, parts)
    error = (decoded.double() - tensor.double()).abs()
    whole = tensor.double() if base is None else tensor.double() - base.double()
    squared = float(error.square().sum())
    if not squared <= tolerance**2 * float(whole.square().sum()):
        return None
    return _Encoded(name, parts, squared, float(error.max()), exact=False)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    separate: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():  # tied tensors of a live network: safetensors wants each to have its memory
        shared = tensor.untyped_storage().data_ptr() in memory
        separate[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
        memory.add(tensor.untyped_storage().data_ptr())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(separate, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
