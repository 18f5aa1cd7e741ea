"""Sources piece by piece, and what is made of them so: task parameters, and a basis in a file, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.files.atomic import replacing
from pyro_smat.networks.parameters import Entry
from pyro_smat.sources.issues import is_finite

if TYPE_CHECKING:
    from pyro_smat.sources.library import SourceLibrary

PIECE = 2**19  # values that are read at a time, of all sources together: 2 MiB of float32, which stay in the cache


@torch.no_grad()
def composed(library: SourceLibrary, coefficients: Tensor) -> Tensor:
    """:meth:`SourceLibrary.compose <pyro_smat.sources.library.SourceLibrary.compose>`."""
    blocks = len(library.space.block_names)
    expected = (len(library),) if blocks == 1 else (blocks, len(library))
    leading = coefficients.shape[: -len(expected)]
    if coefficients.shape != (*leading, *expected):
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; expected (*b, {', '.join(map(str, expected))}): "
            f"one for each source of {library.names}" + f", in each block of {library.space.block_names}" * (blocks > 1)
        )
    if coefficients.requires_grad:
        raise ValueError("coefficients want a gradient, which composing from files has not; detach them")
    if not torch.isfinite(coefficients).all():
        raise ValueError("coefficients hold NaN or infinite values; expected finite ones")
    mixtures = coefficients.to(library.device, library.dtype).reshape(-1, blocks, len(library)).unbind(1)
    active = [mixture.any(0).nonzero().flatten().tolist() for mixture in mixtures]
    theta = torch.zeros(len(mixtures[0]), library.space.dim, dtype=library.dtype, device=library.device)
    for entry in library.space.entries:
        sources = active[entry.block]
        weights = mixtures[entry.block][:, sources]
        for start, rows in rows_of(library, entry, sources):
            # A product with one row keeps its every bit; in a sum of products, -0.0 would become 0.0.
            theta[:, start : start + rows.shape[1]] = weights * rows if len(sources) == 1 else weights @ rows
    return theta.reshape(*leading, -1)


def mapped_basis(library: SourceLibrary, path: Path) -> Tensor:
    """The basis ``(R, d)`` of a library, written to a file anew and mapped from there.

    Raises:
        ValueError: for a file that cannot be written, or weights that are not finite.
    """
    size = len(library) * library.space.dim
    with replacing(path) as temporary:
        with temporary.open("xb") as file:
            file.truncate(size * library.dtype.itemsize)
        written = torch.from_file(str(temporary), shared=True, size=size, dtype=library.dtype).view(len(library), -1)
        for start, rows in library.pieces():
            written[:, start : start + rows.shape[1]] = rows
    return torch.from_file(str(path), shared=True, size=size, dtype=library.dtype).view(len(library), -1)


def rows_of(library: SourceLibrary, entry: Entry, sources: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Pieces of one tensor of some sources: first coordinate and rows ``(len(sources), n)``, ``PIECE`` values at most.

    Raises:
        ValueError: for weights that are not finite; names the source and the tensor.
    """
    if not sources:
        return
    basis = library._basis
    if basis is not None:
        tensors = [basis[r, entry.offset : entry.offset + entry.numel] for r in sources]
    else:
        tensors = [library.checkpoints[library.names[r]].read(entry.name).flatten() for r in sources]
    columns = max(1, PIECE // len(sources))
    for start in range(0, entry.numel, columns):
        rows = torch.stack([tensor[start : start + columns].to(library.dtype) for tensor in tensors])
        if basis is None and not is_finite(rows):
            _refuse(library, entry, sources, rows)
        yield entry.offset + start, rows


def _refuse(library: SourceLibrary, entry: Entry, sources: Sequence[int], rows: Tensor) -> None:
    broken = [library.names[r] for r, row in zip(sources, rows, strict=True) if not is_finite(row)]
    where = ", ".join(f"{name!r} ({library.checkpoints[name].origin})" for name in broken)
    raise ValueError(
        f"not finite: {entry.name} holds NaN or infinite weights in source {where}; expected finite ones: train it "
        "again, or leave the source out (library.without)"
        + ("" if entry.trainable else "; a constant of the network can be left out (head=)")
    )
