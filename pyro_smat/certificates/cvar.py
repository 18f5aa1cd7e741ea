r"""Upper confidence bounds of the CVaR of a loss from N held-out episodes.

Because :math:`\mathrm{CVaR}_\rho(X) = \min_t t + E(X - t)_+ / \rho` (Rockafellar and Uryasev 2000), every t that knows
nothing of the data gives a bound: no union over t is needed.

================  =====================================================================================================
method            bound
================  =====================================================================================================
betting           bets on :math:`Z_i = (X_i - t_i)_+ / (1 - t_i)` against the claim CVaR = c, under which its mean is
                  at least :math:`\rho (c - t_i) / (1 - t_i)`, where :math:`t_i < c`; thresholds :math:`t_i` know only
                  the past, or are fixed; the bound is the largest claim that is not rejected
order-statistics  an exact band of equal local levels for the tail of the distribution function; needs no threshold
dkw               Thomas and Learned-Miller 2019, theorem 3
brown             :math:`\widehat{\mathrm{CVaR}} + \sqrt{5 \ln(3/\delta) / (\rho N)}` (Brown 2007); only to compare with
================  =====================================================================================================
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from pyro_smat.certificates.betting import bets, highest_log_wealth, smallest_rejected
from pyro_smat.certificates.certificate import Certificate, check_delta
from pyro_smat.certificates.mean import betting_bound, shuffled, unit_losses
from pyro_smat.certificates.order_statistics import cvar_of_band, equal_level_band
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array
from pyro_smat.metrics.risk import check_rho, cvar

CVaRMethod = Literal["betting", "order-statistics", "dkw", "brown"]
CVAR_METHODS: tuple[CVaRMethod, ...] = get_args(CVaRMethod)
_GROWTH = 0.1  # thresholds are chosen anew whenever a tenth more is known
_PILOT = 3.0  # without a pilot the first 3 / rho losses are one, and not bet on
_HIGHEST = 1.0 - 1e-6  # of a threshold


def cvar_upper_bound(
    losses: Numbers,
    rho: float,
    delta: float = 0.05,
    method: CVaRMethod = "betting",
    *,
    threshold: float | Numbers | None = None,
    seed: int = 0,
) -> Certificate:
    """A number that the CVaR of the loss of new episodes exceeds with probability at most delta.

    Args:
        losses: ``(N,)`` in [0, 1], of independent episodes that had no part in training or in any choice.
        rho: tail fraction in (0, 1]; 1 is the mean.
        delta: failure probability in (0, 1).
        method: see the table above.
        threshold: for "betting": a number fixes t; losses ``(n,)`` of *other* episodes (training, validation) start the
            running quantile; None takes the first 3 / rho of the losses for that. A bad one costs tightness, never
            validity.
        seed: of the order of play of "betting", see :func:`~pyro_smat.certificates.mean_upper_bound`.

    Raises:
        ValueError: for losses outside [0, 1] or not finite, none at all, a rho or delta out of range, an unknown
            method, a threshold outside [0, 1), or one with another method.

    Example:
        >>> losses = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        >>> bool(0.95 < cvar_upper_bound(losses, rho=0.1, threshold=0.9).bound < 1.0)  # the CVaR is 0.95
        True
    """
    x = unit_losses(losses)
    check_rho(rho)
    check_delta(delta)
    if method not in CVAR_METHODS:
        raise ValueError(f"method is {method!r}; expected one of {CVAR_METHODS}")
    if threshold is not None and method != "betting":
        raise ValueError(f"method {method!r} uses no threshold; leave it out, or use method 'betting'")
    note = ""
    if method == "betting":
        bound = _betting(shuffled(x, seed), rho, delta, threshold)
    elif method == "order-statistics":
        bound = cvar_of_band(np.sort(x), equal_level_band(len(x), _tail_size(len(x), rho), delta), rho)
    elif method == "dkw":
        bound = _dkw(np.sort(x), rho, delta)
    else:
        bound = _empirical(x, rho) + math.sqrt(5 * math.log(3 / delta) / (rho * len(x)))
        note = "the constant is the paper's, for continuous losses"
    return Certificate(min(bound, 1.0), _empirical(x, rho), delta, len(x), "CVaR", method, rho, note=note)


def running_thresholds(losses: FloatArray, rho: float, pilot: FloatArray) -> FloatArray:
    """Predictable thresholds ``(N,)``: the (1 - rho)-quantile of the pilot ``(n,)`` and of what was seen before.

    Chosen anew whenever a tenth more is known.
    """
    thresholds, start = np.empty(len(losses)), 0
    while start < len(losses):
        known = np.concatenate([pilot, losses[:start]])
        end = start + math.ceil(_GROWTH * len(known))
        thresholds[start:end] = min(float(np.quantile(known, 1 - rho, method="inverted_cdf")), _HIGHEST)
        start = end
    return thresholds


def _betting(x: FloatArray, rho: float, delta: float, threshold: float | Numbers | None) -> float:
    if rho == 1:  # the mean
        return betting_bound(x, delta)
    if threshold is not None and np.ndim(threshold) == 0:
        fixed = float(float_array(threshold, "threshold", ndim=0))
        if not 0 <= fixed < 1:
            raise ValueError(f"threshold is {fixed:g}; expected a loss in [0, 1)")
        t = np.full(len(x), fixed)
    else:
        if threshold is None:
            used = min(math.ceil(_PILOT / rho), len(x) // 2)
            pilot, x = x[:used], x[used:]
        else:
            pilot = unit_losses(threshold)
        t = running_thresholds(x, rho, pilot) if len(pilot) else np.zeros(len(x))
    return _largest_claim(x, t, rho, delta)


def _largest_claim(x: FloatArray, t: FloatArray, rho: float, delta: float) -> float:
    """The largest CVaR that betting does not reject; losses and thresholds ``(N,)`` in the order of play.

    Against a claim one bets only where the threshold is below it. So the bets change at the thresholds, and between two
    of them the wealth grows with the claim: walk down from 1 for as long as all claims of an interval are rejected.
    """
    excess = np.maximum(x - t, 0.0) / (1.0 - t)
    stakes, needed, scale = bets(excess, delta), math.log(1 / delta), rho / (1.0 - t)
    high = 1.0
    for low in np.unique(t)[::-1].tolist():
        on = t <= low
        rejected = partial(_rejected, needed=needed, z=excess[on], t=t[on], scale=scale[on], stakes=stakes[on])
        with np.errstate(divide="ignore"):  # at the threshold itself a loss of 1 may cost everything
            if not rejected(low):
                return smallest_rejected(rejected, low, high)
        high = low
    return high


def _rejected(claim: float, needed: float, z: FloatArray, t: FloatArray, scale: FloatArray, stakes: FloatArray) -> bool:
    return highest_log_wealth(z, scale * (claim - t), stakes) >= needed


def _dkw(ascending: FloatArray, rho: float, delta: float) -> float:
    if delta > 0.5:
        raise ValueError(f"delta is {delta!r}; method 'dkw' holds for delta up to 0.5")
    count = len(ascending)
    levels = np.arange(1, count + 1) / count - math.sqrt(math.log(1 / delta) / (2 * count))
    return cvar_of_band(ascending, levels, rho)


def _tail_size(count: int, rho: float) -> int:
    return min(count, count - math.floor((1 - rho) * count) + 1)


def _empirical(x: FloatArray, rho: float) -> float:
    return cvar(torch.from_numpy(x), rho).item()
