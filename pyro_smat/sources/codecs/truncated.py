"""Truncated sparse replacement: the source's own values where it differs most; the base everywhere else."""

from __future__ import annotations

from torch import Tensor

from pyro_smat.sources.codecs.sparse import replacing


def encode(tensor: Tensor, base: Tensor, tolerance: float) -> dict[str, Tensor] | None:
    """Keeps the largest differences: as few as leave ``|rest| <= tolerance |tensor - base|`` (2-norms).

    Returns:
        ``indices`` and ``values``, as the sparse codec has them; None for a base of another dtype.
    """
    if tensor.dtype != base.dtype:
        return None
    difference = (tensor.double() - base.double()).flatten()
    order = difference.abs().argsort()
    rest = difference[order].square().cumsum(0)  # of the smallest differences, in rising order
    dropped = int((rest <= tolerance**2 * rest[-1]).sum()) if len(rest) else 0
    return replacing(tensor, order[dropped:].sort().values)
