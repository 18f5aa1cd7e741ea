"""Losses with a known mean and CVaR: name -> (draw, exact mean, exact CVaR of a tail fraction)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, betabinom

from pyro_smat.metrics.arrays import FloatArray


@dataclass(frozen=True)
class Loss:
    """A distribution on [0, 1].

    Attributes:
        draw: (generator, shape) -> values.
        mean: exact.
        cvar: rho -> exact CVaR.
    """

    draw: Callable[[np.random.Generator, tuple[int, ...]], FloatArray]
    mean: float
    cvar: Callable[[float], float]


def _of_grid(values: FloatArray, weights: FloatArray, rho: float) -> float:
    """CVaR of a discrete distribution."""
    order = np.argsort(-values)
    left = np.maximum(rho - np.concatenate([[0.0], np.cumsum(weights[order])[:-1]]), 0.0)
    return float((np.minimum(weights[order], left) * values[order]).sum() / rho)


def _fine(quantile: Callable[[FloatArray], FloatArray], rho: float) -> float:
    """CVaR by the midpoint rule on the quantile function."""
    return float(quantile(1 - rho * (np.arange(200_000) + 0.5) / 200_000).mean())


def _mixture_quantile(parts: list[tuple[float, FloatArray]], u: FloatArray) -> FloatArray:
    grid = np.linspace(0, 1, 100_001)
    cdf = sum(weight * values for weight, values in parts)
    return np.interp(u, np.asarray(cdf), grid)


_GRID = np.linspace(0, 1, 100_001)
_ACCURACY = np.arange(76)
_MIS = [(0.9, beta.cdf(_GRID, 2, 10)), (0.1, beta.cdf(_GRID, 10, 3))]
_RARE = [(0.98, beta.cdf(_GRID, 2, 20)), (0.02, (_GRID >= 1.0).astype(float))]

LOSSES: dict[str, Loss] = {
    "beta": Loss(lambda g, s: g.beta(2, 8, s), 0.2, lambda rho: _fine(lambda u: beta.ppf(u, 2, 8), rho)),
    "bernoulli": Loss(lambda g, s: (g.random(s) < 0.05).astype(float), 0.05, lambda rho: min(1.0, 0.05 / rho)),
    "accuracy": Loss(
        lambda g, s: 1 - g.binomial(75, g.beta(12, 4, s)) / 75,
        0.25,
        lambda rho: _of_grid(1 - _ACCURACY / 75, betabinom.pmf(_ACCURACY, 75, 12, 4), rho),
    ),
    "misrouting": Loss(
        lambda g, s: np.where(g.random(s) < 0.1, g.beta(10, 3, s), g.beta(2, 10, s)),
        0.9 * 2 / 12 + 0.1 * 10 / 13,
        lambda rho: _fine(lambda u: _mixture_quantile(_MIS, u), rho),
    ),
    "catastrophe": Loss(
        lambda g, s: np.where(g.random(s) < 0.02, 1.0, g.beta(2, 20, s)),
        0.98 * 2 / 22 + 0.02,
        lambda rho: (0.02 + (rho - 0.02) * _fine(lambda u: beta.ppf(u, 2, 20), (rho - 0.02) / 0.98)) / rho,
    ),
}
