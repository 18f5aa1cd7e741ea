"""The Pareto front: which settings nothing beats at both cost and value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_smat.metrics.arrays import Numbers, float_array, same_length


def non_dominated(cost: Numbers, value: Numbers) -> npt.NDArray[np.bool_]:
    """``(n,)`` bool: no other point costs at most as much and is worth at least as much, with one of the two strict.

    Args:
        cost: ``(n,)``, less is better.
        value: ``(n,)``, more is better.

    Raises:
        ValueError: for arrays that are empty, not finite or of different lengths.
    """
    x, y = float_array(cost, "costs"), float_array(value, "values")
    same_length(x, y, "costs and values")
    result, cheaper = np.zeros(len(x), dtype=bool), -np.inf
    for price in np.unique(x):
        same = x == price
        best = y[same].max()
        if best > cheaper:
            result |= same & (y == best)
            cheaper = best
    return result
