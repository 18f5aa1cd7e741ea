"""The best permutation for a table of similarities: one linear assignment, or a nested one where units come in bundles.

Weight and activation matching end here, once a group.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def best_permutation(similarity: Tensor, bundle: int = 1) -> Tensor:
    r"""The permutation p that maximises :math:`\sum_i s_{i, p(i)}`, exactly.

    Bundles of consecutive units have to stay together: every pair of bundles is worth what its best inner assignment
    is worth, and the bundles are assigned by that.

    Args:
        similarity: ``(n, n)``, unit i of the reference against unit j of the network to align.
        bundle: units in a bundle; divides n.

    Returns:
        ``(n,)`` long; unit p(i) goes to place i.

    Raises:
        ValueError: for a table that is not square or holds NaN or infinite entries.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not torch.isfinite(similarity).all():
        raise ValueError(f"similarities are {tuple(similarity.shape)}; expected a square table of finite numbers")
    table = similarity.cpu().double().numpy()
    if bundle == 1:
        return torch.from_numpy(linear_sum_assignment(table, maximize=True)[1])
    count = len(table) // bundle
    blocks = table.reshape(count, bundle, count, bundle).swapaxes(1, 2)
    inner = np.array([[linear_sum_assignment(block, maximize=True)[1] for block in row] for row in blocks])
    worth = np.take_along_axis(blocks, inner[..., None], axis=3).sum((2, 3))
    outer = linear_sum_assignment(worth, maximize=True)[1]
    return torch.from_numpy((outer[:, None] * bundle + inner[np.arange(count), outer]).reshape(-1))
