r"""CORP reliability: the isotonic curve of what happened against what was said, without bins (Dimitriadis et al. 2021).

.. math:: \text{Brier} = \underbrace{S(q) - S(\hat q)}_{\text{miscalibration}} -
          \underbrace{(S(\bar y) - S(\hat q))}_{\text{discrimination}} + \underbrace{S(\bar y)}_{\text{uncertainty}}

with q-hat the isotonic fit (pool adjacent violators). The band is what the curve would do if q were right
(consistency), from truths drawn out of q, whole episodes at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from pyro_smat.metrics.arrays import FloatArray

GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class ReliabilityFit:
    """The isotonic curve of one event, or of all events of a catalog pooled.

    Attributes:
        said: ``(n,)`` distinct probabilities, ascending; happened: fitted frequencies, nondecreasing.
        count: ``(n,)`` how often each was said.
        grid, low, high: ``(101,)`` the 90 % consistency band of the curve at probabilities 0, .01, ..., 1; NaN outside
            of what was said.
        miscalibration, discrimination, uncertainty: of the Brier score, see the first lines.
        episodes: how many.
    """

    said: FloatArray
    happened: FloatArray
    count: np.ndarray
    grid: FloatArray
    low: FloatArray
    high: FloatArray
    miscalibration: float
    discrimination: float
    uncertainty: float
    episodes: int

    @property
    def brier(self) -> float:
        return self.miscalibration - self.discrimination + self.uncertainty

    def share_outside(self) -> float:
        """Of the grid inside of what was said, the share where the curve leaves the band; about .1 if calibrated."""
        inside = np.isfinite(self.low)
        curve = np.interp(self.grid[inside], self.said, self.happened)
        outside = (curve < self.low[inside] - 1e-9) | (curve > self.high[inside] + 1e-9)
        return float(outside.mean())


def reliability_fit(
    probabilities: FloatArray,
    truth: np.ndarray,
    *,
    routing: int | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> ReliabilityFit:
    """Reliability of the probability of one routing, or of all routings pooled.

    Args:
        probabilities: ``(B, J)``, rows sum to 1.
        truth: ``(B,)`` in [0, J).
        routing: whose probability; None pools all J of every episode.
        resamples: of the band; 0 leaves it NaN.
        seed: of these.
    """
    q = np.asarray(probabilities, dtype=np.float64)
    columns = np.arange(q.shape[1]) if routing is None else np.array([routing])
    said = q[:, columns].ravel()
    happened = (truth[:, None] == columns).astype(np.float64).ravel()
    knots, group, count = np.unique(said, return_inverse=True, return_counts=True)
    fitted = _pava(happened, group, count)

    def score(predicted: FloatArray) -> float:
        return float(np.square(happened - predicted).mean())

    uncertainty, best = score(np.full_like(said, happened.mean())), score(fitted[group])
    low, high = np.full_like(GRID, np.nan), np.full_like(GRID, np.nan)
    if resamples:
        generator = np.random.default_rng(seed)
        inside = np.logical_and(knots[0] <= GRID, knots[-1] >= GRID)
        cumulative = q.cumsum(1)
        curves = []
        for _ in range(resamples):
            drawn = (cumulative < generator.random((len(q), 1))).sum(1).clip(max=q.shape[1] - 1)
            again = (drawn[:, None] == columns).astype(np.float64).ravel()
            curves.append(np.interp(GRID[inside], knots, _pava(again, group, count)))
        low[inside], high[inside] = np.quantile(np.array(curves), (0.05, 0.95), axis=0)
    return ReliabilityFit(
        said=knots,
        happened=fitted,
        count=count,
        grid=GRID,
        low=low,
        high=high,
        miscalibration=score(said) - best,
        discrimination=uncertainty - best,
        uncertainty=uncertainty,
        episodes=len(q),
    )


def _pava(happened: FloatArray, group: np.ndarray, count: np.ndarray) -> FloatArray:
    """Isotonic frequencies at the knots; equal probabilities are one knot."""
    means = np.bincount(group, happened, len(count)) / count
    return np.asarray(isotonic_regression(means, weights=count.astype(np.float64)).x)
