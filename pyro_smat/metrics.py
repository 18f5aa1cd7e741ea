r"""Metrics of predictions: proper scores and calibration, and the one place to import every metric from.

Scoring rules and calibration are here; selective prediction (risk-coverage, AUROC) is in ``selective.py``, numbers
over episodes with their uncertainty in ``intervals.py``. All take arrays, lists or tensors and compute in float64.

Padded classes and queries must be taken out by the caller: rows are real queries, columns the episode's classes
(a padded class with probability 0 does no harm). Read the proper scores first: the plug-in calibration error is
biased upwards (about 0.05 at n = 100 queries of a perfectly calibrated predictor) and says nothing of one episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray, IntArray, Numbers, probability_array
from .intervals import Interval, bootstrap_interval, episode_interval, episode_quantile
from .selective import RiskCoverageCurve, augrc, aurc, auroc, risk_coverage_curve

__all__ = [
    "Interval",
    "ReliabilityCurve",
    "RiskCoverageCurve",
    "augrc",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "brier_score",
    "episode_interval",
    "episode_quantile",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_curve",
    "risk_coverage_curve",
]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy in equal-width bins; empty bins are left out.

    Attributes:
        confidence: ``(b,)`` mean top-label probability of each bin, ascending.
        accuracy: ``(b,)`` fraction of right answers in each bin.
        count: ``(b,)`` predictions in each bin.
    """

    confidence: FloatArray
    accuracy: FloatArray
    count: IntArray


def brier_score(probabilities: Numbers, labels: Numbers) -> float:
    r"""Multiclass Brier score :math:`\frac1n \sum_i \sum_k (p_{ik} - 1\{y_i = k\})^2`, in [0, 2].

    Half of it lies in [0, 1]; for two classes that half is the usual binary Brier score.

    Args:
        probabilities: ``(n, W)``.
        labels: ``(n,)`` integers in [0, W).

    Raises:
        ValueError: when a row is no distribution or a label is out of range.
    """
    p, y = probability_array(probabilities, labels)
    return float(np.square(p - np.eye(p.shape[1])[y]).sum(1).mean())


def negative_log_likelihood(probabilities: Numbers, labels: Numbers, clip: float = 1e-12) -> float:
    r"""Mean of :math:`-\ln \max(p_{i y_i}, \text{clip})`, in nats.

    Args:
        probabilities: ``(n, W)``.
        labels: ``(n,)`` integers in [0, W).
        clip: the floor of a probability; one answer costs at most -ln(clip), 27.6 nats by default.

    Raises:
        ValueError: as in :func:`brier_score`, and when ``clip`` is outside (0, 1).
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip!r}; expected a small probability in (0, 1)")
    p, y = probability_array(probabilities, labels)
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], clip)).mean())


def expected_calibration_error(probabilities: Numbers, labels: Numbers, bins: int = 15) -> float:
    r"""Top-label calibration error :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|` (Guo et al. 2017).

    Args:
        probabilities: ``(n, W)``; pool the queries of many episodes.
        labels: ``(n,)`` integers in [0, W).
        bins: number of equal-width bins ((b - 1) / bins, b / bins].

    Raises:
        ValueError: as in :func:`brier_score`, and when ``bins`` is below 1.
    """
    curve = reliability_curve(probabilities, labels, bins)
    return float((curve.count * np.abs(curve.accuracy - curve.confidence)).sum() / curve.count.sum())


def reliability_curve(probabilities: Numbers, labels: Numbers, bins: int = 15) -> ReliabilityCurve:
    """Accuracy against confidence, bin by bin. Arguments and errors as in :func:`expected_calibration_error`."""
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    p, y = probability_array(probabilities, labels)
    confidence, right = p.max(1), p.argmax(1) == y
    # Bins are open below and closed above, so that a confidence of exactly 1 belongs to the last one.
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    return ReliabilityCurve(
        confidence=np.bincount(index, confidence, bins)[filled] / count[filled],
        accuracy=np.bincount(index, right, bins)[filled] / count[filled],
        count=count[filled],
    )
