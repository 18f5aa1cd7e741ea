r"""Composing one task from what it opens: only rows with a non-zero coefficient are read.

:func:`pyro_smat.networks.composition.compose` is one dense product over all rows, the best for many tasks, and its
time does not fall with zeros. This is the other end: one task at deployment, whose time does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.networks.basis import AnyBasis, parts_of
from pyro_smat.networks.parameters import ParameterSpace


@torch.no_grad()
def compose_active(
    coefficients: Tensor, basis: AnyBasis, space: ParameterSpace | None = None, open_entries: Tensor | None = None
) -> Tensor:
    r"""Task parameters :math:`\theta = \sum_{c_i \ne 0} c_i B_i` of one task, without gradient.

    :func:`~pyro_smat.networks.composition.compose` up to rounding; one-hot coefficients give their row bit for bit. A
    row costs
    a scaled addition in place (no copy of the open rows is made), so with more than about half of the rows open the
    dense product is faster.

    Args:
        coefficients: ``(C,)``; or ``(L, C)``, one mixture for each of the L blocks of ``space``.
        basis: ``(C, d)``, rows are sources and masked experts.
        space: needed for blockwise coefficients.
        open_entries: ``(M, L)`` open entries of the experts, the last M rows: blocks that an expert does not touch
            are not read.

    Returns:
        ``(d,)`` in the dtype of ``basis``.

    Raises:
        ValueError: when C, L or M do not match, or no row is open in a block.
    """
    blocks = 1 if space is None else len(space.block_names)
    expected = (basis.shape[0],) if blocks == 1 else (blocks, basis.shape[0])
    if coefficients.shape != expected:
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; expected {expected} of one task: a coefficient for "
            "each row of the basis" + (", for each block of the space" if blocks > 1 else "")
        )
    if open_entries is not None and (open_entries.shape[-1] != blocks or len(open_entries) >= len(basis)):
        raise ValueError(
            f"open entries have shape {tuple(open_entries.shape)}; expected (M, {blocks}), M < {len(basis)} experts"
        )
    rows = coefficients.to(basis.dtype).reshape(blocks, -1).tolist()
    closed = _closed(open_entries, len(basis), blocks)
    theta = torch.empty(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    sizes = (basis.shape[-1],) if space is None else space.block_sizes
    pieces = [row.split(sizes) for matrix in parts_of(basis) for row in matrix]
    for block, (part, *columns) in enumerate(zip(theta.split(sizes), *pieces, strict=True)):
        active = [i for i, weight in enumerate(rows[block]) if weight and i not in closed[block]]
        if not active:
            raise ValueError(f"no coefficient of block {block} is open; expected source weights that add up to 1")
        torch.mul(columns[active[0]], rows[block][active[0]], out=part)
        for i in active[1:]:
            part.add_(columns[i], alpha=rows[block][i])
    return theta


def _closed(open_entries: Tensor | None, rows: int, blocks: int) -> list[set[int]]:
    """For every block the rows of experts that are all zero there."""
    if open_entries is None:
        return [set() for _ in range(blocks)]
    first = rows - len(open_entries)
    return [{first + m for m, count in enumerate(column) if not count} for column in open_entries.mT.tolist()]
