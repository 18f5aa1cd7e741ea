r"""Upper confidence bounds of a mean loss from N held-out episodes.

With the sample mean :math:`\hat R` and a failure probability :math:`\delta`:

===================  ==================================================================================================
method               bound
===================  ==================================================================================================
betting              :math:`\inf\{r : \max_i K_i(r) \ge 1/\delta\}`, see ``betting.py``; the tightest in [0, 1]
clopper-pearson      the :math:`1 - \delta` quantile of Beta(k + 1, N - k); for losses that are 0 or 1, exact
hoeffding            :math:`\hat R + \sqrt{\ln(1/\delta) / (2N)}`
hoeffding-bentkus    :math:`\inf\{r : \min(e^{-N kl(\hat R \wedge r, r)}, e P(\mathrm{Bin}(N, r) \le \lceil N \hat R
                     \rceil)) \le \delta\}` (Bates et al. 2021)
empirical-bernstein  :math:`\hat R + \sqrt{2 V \ln(2/\delta) / N} + 7 \ln(2/\delta) / (3 (N - 1))` (Maurer, Pontil 2009)
===================  ==================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from scipy.special import bdtr, betaincinv, xlogy

from pyro_smat.certificates.betting import bets, highest_log_wealth, smallest_rejected
from pyro_smat.certificates.certificate import Certificate, check_delta
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array

MeanMethod = Literal["betting", "clopper-pearson", "hoeffding", "hoeffding-bentkus", "empirical-bernstein"]
MEAN_METHODS: tuple[MeanMethod, ...] = get_args(MeanMethod)


def mean_upper_bound(
    losses: Numbers, delta: float = 0.05, method: MeanMethod = "betting", *, seed: int = 0
) -> Certificate:
    r"""A number that the mean loss of new episodes exceeds with probability at most delta.

    Args:
        losses: ``(N,)`` in [0, 1], of independent episodes that had no part in training or in any choice.
        delta: failure probability in (0, 1).
        method: see the table above.
        seed: "betting" depends on the order; it plays in a random order that this seed fixes. Choose it before looking:
            the best of several orders is no bound. The running maximum may put the bound below the sample mean (rarely;
            it is valid all the same).

    Raises:
        ValueError: for losses outside [0, 1] or not finite, none at all, an unknown method, a delta outside (0, 1), or
            "clopper-pearson" with losses other than 0 and 1.

    Example:
        >>> round(mean_upper_bound([0.0] * 95 + [1.0] * 5, 0.05, "clopper-pearson").bound, 4)
        0.1023
    """
    x = unit_losses(losses)
    check_delta(delta)
    if method not in MEAN_METHODS:
        raise ValueError(f"method is {method!r}; expected one of {MEAN_METHODS}")
    bound = betting_bound(shuffled(x, seed), delta) if method == "betting" else _BOUNDS[method](x, delta)
    return Certificate(min(bound, 1.0), float(x.mean()), delta, len(x), "mean", method)


def mean_p_value(
    losses: Numbers, risk: float, method: MeanMethod = "betting", *, delta: float = 0.05, seed: int = 0
) -> float:
    """A p-value of the hypothesis that the mean loss is more than ``risk``: at most u with probability at most u.

    Args:
        losses: as in :func:`mean_upper_bound`.
        risk: r in [0, 1).
        method: "betting", "clopper-pearson" (the binomial tail; losses 0 or 1) or "hoeffding-bentkus".
        delta: the level at which it will be used; bets are tuned to it, the p-value is valid at all levels.
        seed: of the order of play.

    Raises:
        ValueError: as in :func:`mean_upper_bound`, for another method, or a risk outside [0, 1).
    """
    x = unit_losses(losses)
    check_delta(delta)
    if not 0 <= risk < 1:
        raise ValueError(f"risk is {risk!r}; expected a mean loss in [0, 1)")
    if method == "betting":
        played = shuffled(x, seed)
        with np.errstate(divide="ignore"):  # at risk 0 a loss of 1 costs everything
            return math.exp(-highest_log_wealth(played, risk, bets(played, delta)))
    if method == "clopper-pearson":
        return float(bdtr(_errors(x), len(x), risk))
    if method == "hoeffding-bentkus":
        return _hoeffding_bentkus_p_value(float(x.mean()), len(x), risk)
    raise ValueError(f"method is {method!r}; expected 'betting', 'clopper-pearson' or 'hoeffding-bentkus'")


def unit_losses(losses: Numbers) -> FloatArray:
    """Losses as float64, refused unless all are in [0, 1].

    Raises:
        ValueError: when one is not.
    """
    x = float_array(losses, "losses")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(
            f"losses range from {x.min():g} to {x.max():g}; expected [0, 1]: a bound needs a bounded loss, e.g. error, "
            "Brier / 2, or min(NLL, c) / c with c fixed beforehand"
        )
    return x


def shuffled(losses: FloatArray, seed: int) -> FloatArray:
    """The losses in a random order that does not depend on them."""
    return losses[np.random.default_rng(seed).permutation(len(losses))]


def betting_bound(losses: FloatArray, delta: float) -> float:
    """The betting bound of losses ``(N,)`` in the order of play."""
    stakes, needed = bets(losses, delta), math.log(1 / delta)
    return smallest_rejected(lambda r: highest_log_wealth(losses, r, stakes) >= needed, 0.0, 1.0)


def _errors(losses: FloatArray) -> int:
    if not np.isin(losses, (0.0, 1.0)).all():
        other = losses[~np.isin(losses, (0.0, 1.0))][0]
        raise ValueError(
            f"losses hold {other:g}; 'clopper-pearson' expects 0 and 1: use 'betting' for losses in [0, 1]"
        )
    return int(losses.sum())


def _clopper_pearson(losses: FloatArray, delta: float) -> float:
    errors, count = _errors(losses), len(losses)
    return 1.0 if errors == count else float(betaincinv(errors + 1, count - errors, 1 - delta))


def _hoeffding(losses: FloatArray, delta: float) -> float:
    return float(losses.mean() + math.sqrt(math.log(1 / delta) / (2 * len(losses))))


def _hoeffding_bentkus_p_value(mean: float, count: int, risk: float) -> float:
    below = min(mean, risk)
    divergence = xlogy(below, below) - xlogy(below, risk) + xlogy(1 - below, 1 - below) - xlogy(1 - below, 1 - risk)
    bentkus = math.e * bdtr(math.ceil(count * mean - 1e-9), count, risk)
    return float(min(1.0, math.exp(-count * divergence), bentkus))


def _hoeffding_bentkus(losses: FloatArray, delta: float) -> float:
    mean, count = float(losses.mean()), len(losses)
    if mean == 1.0:
        return 1.0
    almost = 1.0 - 1e-12
    return smallest_rejected(lambda r: _hoeffding_bentkus_p_value(mean, count, min(r, almost)) <= delta, mean, 1.0)


def _empirical_bernstein(losses: FloatArray, delta: float) -> float:
    count = len(losses)
    if count == 1:
        return 1.0
    log = math.log(2 / delta)
    return float(losses.mean() + math.sqrt(2 * losses.var(ddof=1) * log / count) + 7 * log / (3 * (count - 1)))


_BOUNDS: dict[str, Callable[[FloatArray, float], float]] = {
    "clopper-pearson": _clopper_pearson,
    "hoeffding": _hoeffding,
    "hoeffding-bentkus": _hoeffding_bentkus,
    "empirical-bernstein": _empirical_bernstein,
}
