r"""Selective prediction: how well an uncertainty score says which tasks to keep.

A score is an *uncertainty*: the items with the lowest scores are kept first. Items are tasks (with a real-valued
episode loss) or single answers (with a 0/1 loss). Equal scores are treated fairly: each value is the expectation over
a random order of the tied items, so a constant score gives the plain mean loss and not a lucky or unlucky sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array, same_length


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Mean loss of the kept items against the fraction kept.

    Attributes:
        coverage: ``(n,)`` 1/n, 2/n, ..., 1.
        risk: ``(n,)`` mean loss of the i items with the lowest scores; the last entry is the plain mean loss.
    """

    coverage: FloatArray
    risk: FloatArray


def risk_coverage_curve(scores: Numbers, losses: Numbers) -> RiskCoverageCurve:
    r"""The curve :math:`(i/n,\; R_i)` with :math:`R_i = \frac1i \sum_{j \le i} \ell_{(j)}`, lowest score first.

    Args:
        scores: ``(n,)`` uncertainty; infinite is allowed, NaN is not.
        losses: ``(n,)`` finite losses.

    Raises:
        ValueError: when the lengths differ, or a number is missing.

    Example:
        >>> risk_coverage_curve([0.1, 0.9, 0.5], [0, 1, 0]).risk.round(2).tolist()
        [0.0, 0.0, 0.33]
    """
    ordered = _expected_order(scores, losses)
    counts = np.arange(1, len(ordered) + 1)
    return RiskCoverageCurve(coverage=counts / len(ordered), risk=np.cumsum(ordered) / counts)


def aurc(scores: Numbers, losses: Numbers) -> float:
    r"""Area under the risk-coverage curve, :math:`\frac1n \sum_i R_i` (Geifman, Uziel and El-Yaniv 2019).

    Lower is better; in the unit of the loss. It weighs the most confident items most (by about -ln coverage).
    Other conventions (trapezoid, interpolated ends) differ by O(1/n). Arguments and errors as in
    :func:`risk_coverage_curve`.
    """
    return float(risk_coverage_curve(scores, losses).risk.mean())


def excess_aurc(scores: Numbers, losses: Numbers) -> float:
    r"""AURC minus that of the best possible score, which keeps the items in the order of their losses.

    At least 0, and 0 for a score that orders like the losses (Geifman, Uziel and El-Yaniv 2019). Arguments and errors
    as in :func:`risk_coverage_curve`.
    """
    return aurc(scores, losses) - aurc(losses, losses)


def augrc(scores: Numbers, losses: Numbers) -> float:
    r"""Area under the generalised risk-coverage curve, :math:`\frac1n \sum_i \frac1n \sum_{j \le i} \ell_{(j)}`.

    The joint risk of being kept *and* wrong, averaged over coverages; lower is better (Traub et al. 2024).
    Arguments and errors as in :func:`risk_coverage_curve`.
    """
    curve = risk_coverage_curve(scores, losses)
    return float((curve.coverage * curve.risk).mean())


def auroc(scores: Numbers, positives: Numbers) -> float:
    r"""Probability that a positive outscores a negative, ties counting half (Mann-Whitney).

    For misrouting: the score is the uncertainty and a positive is a misrouted task.

    Args:
        scores: ``(n,)``; infinite is allowed, NaN is not.
        positives: ``(n,)`` bool, or 0 and 1.

    Returns:
        A number in [0, 1]; NaN when there are no positives or no negatives, where it is undefined.

    Raises:
        ValueError: when the lengths differ, a score is NaN, or a positive is neither 0 nor 1.
    """
    s = float_array(scores, "scores", finite=False)
    y = float_array(positives, "positives")
    same_length(s, y, "scores and positives")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError(f"positives hold {np.setdiff1d(y, (0.0, 1.0))[0]:g}; expected booleans, or 0 and 1")
    hits = int(y.sum())
    misses = len(y) - hits
    if hits == 0 or misses == 0:
        return float("nan")
    _, place, equal = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(equal) - (equal - 1) / 2)[place]  # from 1; equal scores share the mean of theirs
    return float((ranks[y == 1].sum() - hits * (hits + 1) / 2) / (hits * misses))


def _expected_order(scores: Numbers, losses: Numbers) -> FloatArray:
    """Losses by ascending score, each replaced by the mean of its tie group: the expectation over random tie-breaks."""
    s = float_array(scores, "scores", finite=False)
    x = float_array(losses, "losses")
    same_length(s, x, "scores and losses")
    _, group, size = np.unique(s, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group, x) / size, size)
