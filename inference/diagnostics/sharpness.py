r"""How much too sharp or too flat a posterior is, as one number with an interval.

For a catalog the temperature that would calibrate it, :math:`\hat T = \arg\max_T \sum_i \log \mathrm{softmax}(\log q_i
/ T)_{c_i^*}`: 1 is calibrated, 1.3 is a guide that says p^1.3, below 1 it is too flat. For continuous quantities the
standard deviation of :math:`\Phi^{-1}(\mathrm{PIT})`: 1.25 is a guide with 0.8 of the right deviation.
A test says whether there is a difference; this says whether it matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from pyro_smat.inference.diagnostics.pareto_tail import logsumexp
from pyro_smat.metrics.arrays import FloatArray

COLDEST, HOTTEST = 1 / 64, 64.0  # temperatures that are looked at
SMALLEST = 1e-30  # a probability of 0 for what happened is no temperature's fault


@dataclass(frozen=True)
class Sharpness:
    """An estimate and its 95 % interval; 1 is calibrated, above it the posterior is too sharp.

    Attributes:
        estimate, low, high: NaN where the posterior is uniform everywhere, so that no temperature changes it.
        kind: "temperature" or "deviation".
        p_value: of the test that it is 1, NaN where there is none.
    """

    estimate: float
    low: float
    high: float
    kind: str = "temperature"
    p_value: float = float("nan")

    @property
    def calibrated(self) -> bool:
        """Whether the interval holds 1."""
        return bool(self.low <= 1.0 <= self.high)

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def temperature_estimate(probabilities: FloatArray, truth: np.ndarray, *, level: float = 0.95) -> Sharpness:
    """T-hat with its likelihood-ratio interval.

    Args:
        probabilities: ``(N, J)`` q.
        truth: ``(N,)`` what happened, in [0, J).
        level: of the interval.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.dirichlet(np.ones(4), 4000)
        >>> truth = (p.cumsum(1) > rng.random((4000, 1))).argmax(1)
        >>> sharp = p**1.3 / (p**1.3).sum(1, keepdims=True)
        >>> temperature_estimate(p, truth).calibrated, round(temperature_estimate(sharp, truth).estimate, 1)
        (True, 1.3)
    """
    log_q = np.log(np.clip(np.asarray(probabilities, dtype=np.float64), SMALLEST, None))
    own = np.take_along_axis(log_q, truth[:, None], axis=1)[:, 0]
    if np.ptp(log_q, axis=1).max() < 1e-9:
        return Sharpness(np.nan, np.nan, np.nan)

    def slope(beta: float) -> float:  # of a concave function of beta = 1 / T
        tempered = beta * log_q
        weights = np.exp(tempered - logsumexp(tempered)[:, None])
        return float((own - (weights * log_q).sum(1)).sum())

    def value(beta: float) -> float:
        return float((beta * own - logsumexp(beta * log_q)).sum())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) <= 0:
        best = low
    elif slope(high) >= 0:
        best = high
    else:
        best = float(brentq(slope, low, high, xtol=1e-9))
    limit = value(best) - chi2.ppf(level, 1) / 2

    def excess(beta: float) -> float:
        return value(beta) - limit

    smallest = low if excess(low) > 0 else float(brentq(excess, low, best))
    largest = high if excess(high) > 0 else float(brentq(excess, best, high))
    p_value = float(chi2.sf(max(0.0, 2 * (value(best) - value(1.0))), 1))
    return Sharpness(1 / best, 1 / largest, 1 / smallest, p_value=p_value)


def deviation_estimate(pits: FloatArray, *, level: float = 0.95) -> Sharpness:
    """Root mean square of :math:`\\Phi^{-1}(u)` of PIT values ``(N,)``, with a chi-squared interval.

    Above 1 where intervals are too narrow *or* in the wrong place; the ECDF of the PIT values says which.
    """
    z = norm.ppf(np.clip(pits, 1e-9, 1 - 1e-9))
    n, total = len(z), float((z**2).sum())
    tail = (1 - level) / 2
    ends = np.sqrt(total / chi2.ppf([1 - tail, tail], n))
    return Sharpness(float(np.sqrt(total / n)), float(ends[0]), float(ends[1]), "deviation")
