r"""Pareto-smoothed importance weights of many episodes at once, in numpy.

The largest weights of every episode are replaced by quantiles of the generalised Pareto distribution that fits them:
the algorithm of Vehtari et al. (2024), with the empirical Bayes fit of Zhang and Stephens (2009), vectorised over rows.
ArviZ has it one row at a time, on *minus* the log weights.
"""

from __future__ import annotations

import numpy as np

from pyro_smat.metrics.arrays import FloatArray

EQUAL_WEIGHTS = 1e-3  # standard deviation of log weights that is rounding, not information
PRIOR_COUNT, PRIOR_SHAPE = 10, 0.5
BELOW_TAIL = 50.0  # nats below the smallest weight: where draws without any mass are put


def tail_size(num_samples: int) -> int:
    """How many of K weights make the tail: 3 sqrt(K), a fifth of few."""
    return int(3 * np.sqrt(num_samples)) if num_samples > 225 else num_samples // 5


def smooth(log_ratios: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smoothed, normalised log weights and k-hat.

    Args:
        log_ratios: ``(B, K)`` log p - log q, K >= 25; -inf for draws without mass under p.

    Returns:
        Log weights ``(B, K)`` that sum to one in every row, and k-hat ``(B,)``: -inf where all weights or all of the
        tail are equal, inf where too few draws have any mass.
    """
    some = np.isfinite(log_ratios)
    count, tail = log_ratios.shape[1], tail_size(log_ratios.shape[1])
    top = np.max(log_ratios, axis=1, where=some, initial=-np.inf)
    weights = log_ratios - np.where(np.isfinite(top), top, 0.0)[:, None]
    lowest = np.min(weights, axis=1, where=some, initial=0.0)
    filled = np.where(some, weights, lowest[:, None] - BELOW_TAIL)
    order = np.argpartition(filled, count - tail - 1, axis=1)[:, count - tail - 1 :]  # the tail and the one below
    largest = np.take_along_axis(filled, order, axis=1)
    inner = np.argsort(largest, axis=1)
    order, largest = np.take_along_axis(order, inner, axis=1), np.take_along_axis(largest, inner, axis=1)
    enough = some.sum(1) > tail
    flat = enough & ((np.ptp(largest[:, 1:], axis=1) < 1e-12) | (filled.std(1) < EQUAL_WEIGHTS))
    khat = np.where(flat, -np.inf, np.inf)
    rows = np.flatnonzero(enough & ~flat)
    if len(rows):
        cutoff = np.exp(largest[rows, :1])
        khat[rows], scale = fit_tail(np.exp(largest[rows, 1:]) - cutoff)
        fitted = rows[np.isfinite(khat[rows])]
        k, sigma = khat[fitted, None], scale[np.isfinite(khat[rows]), None]
        probabilities = (np.arange(tail) + 0.5) / tail
        excess = sigma * np.expm1(-k * np.log1p(-probabilities)) / np.where(k == 0, 1.0, k)
        smoothed = np.log(np.exp(largest[fitted, :1]) + excess)
        weights[fitted[:, None], order[fitted, 1:]] = np.minimum(smoothed, largest[fitted, -1:])
        weights = np.where(some, weights, -np.inf)
    total = logsumexp(weights)
    return weights - np.where(np.isfinite(total), total, 0.0)[:, None], khat


def fit_tail(excess: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Shape k and scale sigma ``(B,)`` of generalised Pareto tails from ascending excesses ``(B, n)`` over a threshold.

    inf and NaN where the first quartile is no larger than the smallest excess: nothing like a Pareto tail.
    """
    episodes, n = excess.shape
    grid = 30 + int(np.sqrt(n))
    quartile = excess[:, int(n / 4 + 0.5) - 1]
    usable = (quartile > excess[:, 0]) & (excess[:, -1] > 0)
    x, quartile = excess[usable], quartile[usable]
    steps = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = steps / (3 * quartile[:, None]) + 1 / x[:, -1:]  # (b, grid)
    shape = np.empty_like(b)
    for column in range(grid):  # a loop over the grid keeps the arrays in the cache
        shape[:, column] = np.log1p(-b[:, column, None] * x).mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        likelihood = n * (np.log(-b / shape) - shape - 1)
    likelihood = np.where(np.isnan(likelihood), -np.inf, likelihood)
    weight = np.exp(likelihood - logsumexp(likelihood)[:, None])
    weight = np.where(weight >= 10 * np.finfo(float).eps, weight, 0.0)
    best = (b * weight).sum(1) / weight.sum(1)
    raw = np.log1p(-best[:, None] * x).mean(1)
    khat, scale = np.full(episodes, np.inf), np.full(episodes, np.nan)
    khat[usable] = (n * raw + PRIOR_COUNT * PRIOR_SHAPE) / (n + PRIOR_COUNT)
    scale[usable] = -raw / best
    bad = ~np.isfinite(khat)
    khat[bad] = np.inf
    return khat, scale


def logsumexp(values: FloatArray) -> FloatArray:
    """Over the last dim; -inf where all entries are."""
    top = values.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - top).sum(-1)) + top[..., 0]
