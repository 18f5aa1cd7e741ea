"""Numbers over episodes and how sure they are.

The episode is the unit of resampling: the queries of one episode share a support set and are not independent.
An interval speaks about new episodes from the same pool of images, not about new classes or domains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import batched

import numpy as np
from scipy.special import stdtrit

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array

AT_ONCE = 2**20  # resampled episodes that a vectorized statistic is given


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        low, high: ends of the interval; NaN where the data do not determine it (a single episode).
    """

    value: float
    low: float
    high: float


def episode_interval(values: Numbers, level: float = 0.95) -> Interval:
    r"""Mean over episodes with the Student interval :math:`\bar x \pm t_{n-1} \, s / \sqrt n`.

    Args:
        values: ``(n,)`` one number per episode, e.g. its accuracy.
        level: confidence in (0, 1).

    Returns:
        The interval; its ends are NaN for n = 1.

    Raises:
        ValueError: when ``values`` is empty or not finite, or ``level`` is outside (0, 1).
    """
    _check_level(level)
    x = float_array(values, "values")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stdtrit(len(x) - 1, 0.5 + level / 2) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(
    values: Numbers,
    statistic: Callable[[FloatArray], float | FloatArray],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 1000,
    vectorized: bool = False,
) -> Interval:
    """Any statistic of the episodes with its percentile bootstrap interval (Efron 1979).

    For what is no mean: a CVaR, a quantile, an AURC. It is an approximation, not a certificate, and too short for a
    tail of few episodes.

    Args:
        values: ``(n,)``, or ``(n, m)`` with m numbers per episode (e.g. score and loss); rows are resampled.
        statistic: takes resampled rows, ``(n,)`` or ``(n, m)``, and returns a number; NaN means undefined there.
        level: confidence in (0, 1).
        seed: of the resampling.
        resamples: how many.
        vectorized: ``statistic`` takes several resamples at once, ``(k, n)`` or ``(k, n, m)``, and returns ``(k,)``.

    Returns:
        The statistic of ``values`` and the interval over the resamples where it is defined; NaN ends for n = 1.

    Raises:
        ValueError: when ``values`` is empty or holds NaN, ``level`` is outside (0, 1) or ``resamples`` is below 1.

    Example:
        >>> bootstrap_interval([1.0, 2.0, 3.0, 4.0], np.median, seed=1).value
        2.5
    """
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1")
    rows = float_array(values, "values", ndim=max(1, np.ndim(values)), finite=False)
    value, generator = float(np.squeeze(statistic(rows[None] if vectorized else rows))), np.random.default_rng(seed)
    if len(rows) == 1:
        return Interval(value, math.nan, math.nan)
    # scipy.stats.bootstrap draws the same, but warns where all resamples agree and is NaN where one is undefined.
    chosen = (generator.integers(len(rows), size=len(rows)) for _ in range(resamples))
    if vectorized:
        piece = max(1, AT_ONCE // len(rows))
        draws = np.concatenate([np.asarray(statistic(rows[np.stack(some)])) for some in batched(chosen, piece)])
    else:
        draws = np.array([float(statistic(rows[one])) for one in chosen])
    defined = draws[~np.isnan(draws)]
    if len(defined) == 0:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(defined, (0.5 - level / 2, 0.5 + level / 2))
    return Interval(value, float(low), float(high))


def episode_quantile(values: Numbers, level: float) -> float:
    r"""The smallest observed value x with at least ``level`` of the episodes at or below it (inverted CDF).

    Always one of the values: interpolation would understate a tail that has few episodes.

    Args:
        values: ``(n,)`` e.g. episode losses.
        level: in (0, 1], e.g. 0.95 for Q.95.

    Raises:
        ValueError: when ``values`` is empty or not finite, or ``level`` is outside (0, 1].
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level!r}; expected a fraction in (0, 1]")
    x = float_array(values, "values")
    return float(np.quantile(x, level - 1e-9 / len(x), method="inverted_cdf"))  # 0.07 * 100 is above 7


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a confidence in (0, 1), e.g. 0.95")
