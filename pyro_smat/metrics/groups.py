"""The worst group: where the losses of a partition of the episodes (data set, corruption, severity) are highest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_smat.metrics.arrays import Numbers, float_array, same_length
from pyro_smat.metrics.risk import check_rho, cvar


def worst_group(
    values: Numbers, groups: Sequence[str] | Numbers, rho: float | None = None
) -> tuple[str | int | float, float]:
    r"""The group g with the highest :math:`E[L \mid g]`, or :math:`\mathrm{CVaR}_\rho(L \mid g)`, and that number.

    The highest of several estimates is biased upwards, the more so the smaller the groups are; to certify it, bound
    every group and share delta among them.

    Args:
        values: ``(n,)`` losses; higher is worse.
        groups: ``(n,)`` the group of each, as names or numbers.
        rho: tail fraction in (0, 1]; None asks for the mean.

    Returns:
        Group and value; of equally bad groups the first in sorted order.

    Raises:
        ValueError: when the lengths differ, a loss is not finite, or ``rho`` is outside (0, 1].

    Example:
        >>> worst_group([0.1, 0.3, 0.9, 0.0], ["clean", "clean", "noisy", "noisy"])
        ('noisy', 0.45)
    """
    x = float_array(values, "values")
    names = np.asarray(groups.detach().cpu() if isinstance(groups, Tensor) else groups)
    same_length(x, names, "values and groups")
    tail = 1.0 if rho is None else rho
    check_rho(tail)
    unique, index = np.unique(names, return_inverse=True)
    found = [cvar(torch.from_numpy(x[index == g]), tail).item() for g in range(len(unique))]
    worst = int(np.argmax(found))
    return unique[worst].item(), found[worst]
