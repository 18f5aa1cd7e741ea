r"""A lower band for the upper order statistics of uniform variables, exact, and the CVaR bound that it gives.

If :math:`P(U_{(i)} \ge l_i\ \forall i \ge i_0) \ge 1 - \delta` for N uniform variables, then with the same probability
the distribution function of the losses is at least :math:`l_i` at the i-th smallest loss, for all those i at once.
Integrating the band bounds CVaR for every tail fraction up to :math:`1 - i_0 / N` (Thomas and Learned-Miller 2019,
theorem 3, with a band of equal local levels instead of that of Dvoretzky, Kiefer and Wolfowitz).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv

from pyro_smat.metrics.arrays import FloatArray

LARGEST_TAIL = 2000  # order statistics in the band: the recursion takes their square
_NEGLIGIBLE = 1e-18


def equal_level_band(count: int, tail: int, delta: float) -> FloatArray:
    r"""Levels :math:`l_i` of the ``tail`` largest of ``count`` uniform order statistics, ``(tail,)``, ascending.

    :math:`l_i` is the :math:`\gamma` quantile of :math:`U_{(i)} \sim \mathrm{Beta}(i, N - i + 1)`, with
    :math:`\gamma` such that all hold together with probability :math:`1 - \delta`.

    Args:
        count: N.
        tail: how many order statistics, at most 2,000.
        delta: failure probability.

    Raises:
        ValueError: for a tail above 2,000 or outside [1, N].
    """
    if not 1 <= tail <= min(count, LARGEST_TAIL):
        raise ValueError(
            f"the tail holds {tail} of {count} losses; expected 1 to {min(count, LARGEST_TAIL)}: use method 'betting'"
        )
    return _levels(_local_level(count, tail, delta), count, tail)


def crossing_probability(levels: FloatArray, count: int) -> float:
    """The probability that some of the largest uniform order statistics of ``count`` falls below its level.

    Exact, by recursion from the top: the state is how many points lie above a level; once there are as many as the
    lowest level asks for, nothing can go wrong any more.

    Args:
        levels: ``(tail,)`` ascending, for the order statistics count - tail + 1, ..., count.
        count: N.
    """
    tail = len(levels)
    states = np.arange(tail)
    alive = np.zeros(
        tail
    )  # probability of a < tail points above the level just passed, none of the earlier ones broken
    alive[0], above, safe = 1.0, 1.0, 0.0
    for needed, level in enumerate(levels[::-1], start=1):  # the needed-th largest: so many points have to lie above
        odds = (above - level) / level
        move = np.exp((count - states) * np.log1p((level - above) / above))  # no point falls in between
        after = alive * move
        for jump in range(1, tail):
            move = move * odds * np.maximum(count - states - jump + 1, 0) / jump
            after[jump:] += alive[:-jump] * move[:-jump]
            if jump > count * odds and move.max() < _NEGLIGIBLE:
                break
        safe += alive.sum() - after.sum()
        after[:needed] = 0.0
        alive, above = after, level
    return float(max(0.0, 1.0 - safe))


def cvar_of_band(losses: FloatArray, levels: FloatArray, rho: float) -> float:
    r"""The largest CVaR of a distribution on [0, 1] that is in the band, :math:`1 - \frac1\rho \sum_i (x_{(i+1)} -
    x_{(i)}) (l_i - (1 - \rho))_+` with :math:`x_{(N+1)} = 1`.

    Args:
        losses: ``(N,)`` ascending.
        levels: ``(tail,)`` of the largest of them.
        rho: tail fraction.
    """
    steps = np.diff(np.append(losses[len(losses) - len(levels) :], 1.0))
    return float(1.0 - (steps * np.maximum(levels - (1.0 - rho), 0.0)).sum() / rho)


def _levels(local: float, count: int, tail: int) -> FloatArray:
    ranks = np.arange(count - tail + 1, count + 1)
    return betaincinv(ranks, count - ranks + 1, local)


@lru_cache(maxsize=256)
def _local_level(count: int, tail: int, delta: float) -> float:
    """Gamma; on the safe side of the root."""
    low, high = np.log(delta / tail), np.log(delta)  # Bonferroni, and a single order statistic

    def excess(log_level: float) -> float:
        return crossing_probability(_levels(float(np.exp(log_level)), count, tail), count) - delta

    if tail == 1:
        return delta
    return float(np.exp(brentq(excess, low - 1e-3, high, xtol=1e-4) - 1e-4))
