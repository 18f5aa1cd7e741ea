r"""Betting: the wealth of a gambler who bets that a mean is smaller than claimed, and the bounds that follow.

If Z_1, Z_2, ... in [0, 1] have conditional means at least m_i, then for bets :math:`0 \le \nu_i \le 1` that know only
the past, the wealth

.. math:: K_i = \prod_{j \le i} \bigl(1 - \nu_j (Z_j - m_j)\bigr)

is a nonnegative supermartingale, so that it ever reaches 1 / delta with probability at most delta (Ville). A claim
under which it does is rejected. Source: Waudby-Smith and Ramdas 2024, section 4; bets as in Bates et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pyro_smat.metrics.arrays import FloatArray

PRECISION = 1e-7  # of a bound, in units of the loss; bounds are rounded upwards


def bets(values: FloatArray, delta: float) -> FloatArray:
    r"""Predictable bets :math:`\nu_i = \min(1, \sqrt{2 \ln(1/\delta) / (N s_{i-1}^2)})`, ``(N,)``.

    :math:`s_{i-1}^2` is the running variance of what was seen before, started at 1/4 about 1/2.

    Args:
        values: ``(N,)`` in [0, 1], in the order of play.
        delta: failure probability.
    """
    seen = np.arange(1, len(values) + 1)
    mean = (0.5 + np.cumsum(values)) / (1 + seen)
    variance = (0.25 + np.cumsum(np.square(values - mean))) / (1 + seen)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (len(values) * before)))


def highest_log_wealth(values: FloatArray, means: FloatArray | float, stakes: FloatArray) -> float:
    """The maximum over time of ln K, at least 0 (the wealth before the first bet).

    Args:
        values: ``(N,)`` Z in [0, 1].
        means: ``(N,)`` or a number: the claimed means m.
        stakes: ``(N,)`` the bets nu.
    """
    return max(0.0, float(np.cumsum(np.log1p(-stakes * (values - means))).max()))


def smallest_rejected(rejected: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest claim in (low, high] that is rejected, rounded up by at most 1e-7; ``high`` if none is.

    Args:
        rejected: monotone: what rejects a claim rejects all larger ones.
        low: a claim below which none needs to be tried.
        high: the largest possible value.
    """
    if not rejected(high):
        return high
    while high - low > PRECISION:
        middle = 0.5 * (low + high)
        if rejected(middle):
            high = middle
        else:
            low = middle
    return high
