"""What is made of sources that are read piece by piece: task parameters, and a basis in a file, never all at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.files.atomic import replacing

if TYPE_CHECKING:
    from pyro_smat.sources.library import SourceLibrary


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
        for start, rows in library.rows_of(entry, sources):
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
