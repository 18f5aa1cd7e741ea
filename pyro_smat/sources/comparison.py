r"""How far sources are from each other: distances, directions of task vectors, shares of weights that differ.

One pass over the checkpoints, a piece of all sources at a time. A task vector is :math:`\theta^{(r)} - \theta^{(0)}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.networks.parameters import ParameterSpace

if TYPE_CHECKING:
    from pyro_smat.sources.library import SourceLibrary


@dataclass(frozen=True)
class Comparison:
    """Pairs of R sources, in each of L blocks and over all of them.

    Attributes:
        names, block_names: of sources and blocks.
        norm: ``(R,)``, of the sources.
        distance: ``(L + 1, R, R)``, 2-norms of differences; the last of the L + 1 is over all blocks.
        inner: ``(L + 1, R, R)``, inner products of task vectors.
        differing: ``(L + 1, R, R)``, shares of coordinates that differ, in [0, 1].
    """

    names: tuple[str, ...]
    block_names: tuple[str, ...]
    norm: Tensor
    distance: Tensor
    inner: Tensor
    differing: Tensor

    @property
    def cosine(self) -> Tensor:
        """``(L + 1, R, R)``: cosines of task vectors; NaN where one is zero, as that of theta_pre is."""
        lengths = self.inner.diagonal(dim1=-2, dim2=-1).sqrt()
        cosine = self.inner / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2))
        return torch.where(cosine.isfinite(), cosine.clamp(-1, 1), torch.nan)

    def summary(self, space: ParameterSpace) -> str:
        """A line for every source: norm, distance to theta_pre relative to its norm, nearest other task vector."""
        count, width = len(self.names), max(6, *(len(name) for name in self.names))
        cosines = self.cosine[-1].nan_to_num(0.0).fill_diagonal_(-torch.inf)
        lines = [
            f"{count} sources, d = {space.dim:,} ({sum(e.trainable for e in space.entries)} parameter "
            f"tensors, {sum(not e.trainable for e in space.entries)} running statistics)",
            f"{'source':<{width}}  {'|theta|':>9}  {'moved':>7}  {'nearest task vector':>20}",
            f"{self.names[0]:<{width}}  {self.norm[0]:>9.3f}  {'-':>7}  {'theta_pre (fallback)':>20}",
        ]
        for row, name in list(enumerate(self.names))[1:]:
            near = int(cosines[row, 1:].argmax()) + 1 if count > 2 else 0
            text = f"{self.names[near]} {cosines[row, near]:+.2f}" if count > 2 else "-"
            moved = self.distance[-1, row, 0] / self.norm[0]
            lines.append(f"{name:<{width}}  {self.norm[row]:>9.3f}  {moved:>7.3f}  {text:>20}")
        return "\n".join(lines)


@torch.no_grad()
def compare(library: SourceLibrary) -> Comparison:
    """Compare all sources of a library with each other; sums in float64.

    Raises:
        ValueError: for weights that are not finite.
    """
    space, count = library.space, len(library)
    blocks = len(space.block_names)
    squared_norm = torch.zeros(count, dtype=torch.float64)
    squared, inner, differing = (torch.zeros(blocks, count, count, dtype=torch.float64) for _ in range(3))
    for block in range(blocks):
        for _, rows in library.pieces(block):
            values = rows.double()
            squared_norm += values.square().sum(1)
            vectors = values - values[0]
            inner[block] += vectors @ vectors.T
            for a in range(count - 1):
                differences = values[a + 1 :] - values[a]
                differing[block, a, a + 1 :] += (rows[a + 1 :] != rows[a]).sum(1)
                squared[block, a, a + 1 :] += differences.square_().sum(1)
    sizes = torch.tensor([*space.block_sizes, space.dim], dtype=torch.float64).view(-1, 1, 1)
    squared, inner, differing = (torch.cat([t, t.sum(0, keepdim=True)]) for t in (squared, inner, differing))
    return Comparison(
        names=library.names,
        block_names=space.block_names,
        norm=squared_norm.sqrt(),
        distance=(squared + squared.mT).sqrt(),
        inner=inner,
        differing=(differing + differing.mT) / sizes,
    )
