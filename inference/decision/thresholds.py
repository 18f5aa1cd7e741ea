"""Thresholds of abstention, from validation episodes: by coverage, or by the loss of the whole."""

from __future__ import annotations

import math

import numpy as np

from pyro_smat.metrics.arrays import Numbers, float_array


def coverage_threshold(values: Numbers, coverage: float) -> float:
    """The smallest threshold that accepts at least a share ``coverage`` of the episodes.

    Args:
        values: U ``(n,)`` of validation episodes.
        coverage: in (0, 1].

    Raises:
        ValueError: for a coverage outside (0, 1], or NaN.

    Example:
        >>> coverage_threshold([0.3, 0.1, 0.2, 0.9], 0.75)
        0.3
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage!r}; expected a share in (0, 1]")
    u = float_array(values, "values", finite=False)
    return float(np.quantile(u, max(coverage - 1e-9 / len(u), 0.0), method="inverted_cdf"))


def least_loss_threshold(values: Numbers, losses: Numbers, fallback_losses: Numbers, coverage: float = 0.0) -> float:
    """The threshold with the lowest mean loss of the whole, routed or fallen back; infinity where none pays.

    Args:
        values: U ``(n,)`` of validation episodes.
        losses: ``(n,)`` of the routed predictions.
        fallback_losses: ``(n,)`` of the fallback, on the same episodes.
        coverage: least share of episodes to accept.

    Raises:
        ValueError: for NaN.
    """
    u, ours, theirs = (
        float_array(v, what, finite=what != "values")
        for v, what in ((values, "values"), (losses, "losses"), (fallback_losses, "fallback losses"))
    )
    best, least = math.inf, float(ours.mean())
    for threshold in np.unique(u):
        kept = u <= threshold
        loss = float(np.where(kept, ours, theirs).mean())
        if kept.mean() >= coverage and loss < least:
            best, least = float(threshold), loss
    return best
