"""Basis: the rows of sources and experts, each where they lie, never copied into one matrix.

A model makes one of its frozen sources and the experts of now; :func:`~pyro_smat.networks.product.compose` multiplies
it, so sources that are large, shared or mapped from a file are read and not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Basis:
    """A ``(C, d)`` matrix in parts, C = R + M; or m of them, ``(m, C, d)``, for samples of the experts' gates.

    It says its shape, dtype and device as the matrix would, and what takes a basis takes either.

    Attributes:
        sources: ``(R, d)`` or ``(m, R, d)``, the latter expanded.
        experts: ``(M, d)`` or ``(m, M, d)``, masked, of the same dtype; None without experts.

    Example:
        >>> basis = Basis(torch.eye(2, 3), torch.ones(1, 3))
        >>> basis.shape, basis.matrix().tolist()
        (torch.Size([3, 3]), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    """

    sources: Tensor
    experts: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The matrices whose rows are those of the basis, one after the other."""
        return (self.sources,) if self.experts is None else (self.sources, self.experts)

    @property
    def shape(self) -> torch.Size:
        """``(C, d)`` or ``(m, C, d)``."""
        *leading, _, dim = self.sources.shape
        return torch.Size((*leading, sum(part.shape[-2] for part in self.parts), dim))

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return self.sources.ndim

    @property
    def dtype(self) -> torch.dtype:
        """That of all rows."""
        return self.sources.dtype

    @property
    def device(self) -> torch.device:
        """That of all rows."""
        return self.sources.device

    def element_size(self) -> int:
        """Bytes of an entry."""
        return self.sources.element_size()

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Basis]:
        """The m bases of ``(m, C, d)``."""
        self._need_samples()
        return (Basis(*parts) for parts in zip(*(part.unbind(0) for part in self.parts), strict=True))

    def __getitem__(self, sample: int) -> Basis:
        """One of them.

        Raises:
            TypeError: like iteration, for ``(C, d)``, whose rows lie in several matrices.
        """
        self._need_samples()
        return Basis(*(part[sample] for part in self.parts))

    def unsqueeze(self, dim: int) -> Basis:
        """``(1, C, d)`` of ``(C, d)``; ``dim`` is 0."""
        return Basis(*(part.unsqueeze(dim) for part in self.parts))

    def detach(self) -> Basis:
        """The same rows without a gradient."""
        return Basis(*(part.detach() for part in self.parts))

    def matrix(self) -> Tensor:
        """The rows as one tensor, a copy of all of them where there are experts."""
        return self.sources if self.experts is None else torch.cat(self.parts, dim=-2)

    def _need_samples(self) -> None:
        if self.ndim == 2:
            raise TypeError(
                f"the rows of a basis {tuple(self.shape)} lie in several matrices; expected .sources, .experts, or "
                ".matrix(), which copies them into one"
            )


AnyBasis = Basis | Tensor


def parts_of(basis: AnyBasis | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The matrices whose rows, one after the other, are a basis."""
    if isinstance(basis, Basis):
        return basis.parts
    return (basis,) if isinstance(basis, Tensor) else tuple(basis)
