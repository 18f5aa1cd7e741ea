r"""Metrics of predictions: proper scores and calibration, and the one place to import every metric from.

Scoring rules are here; calibration is in ``calibration.py``, selective prediction (risk-coverage, AUROC) in
``selective.py``, excess loss over candidate routings in ``misrouting.py``, numbers over episodes with their
uncertainty in ``intervals.py``, the worst of several groups of episodes in ``groups.py``. All take arrays, lists or
tensors and compute in float64.

Padded classes and queries must be taken out by the caller: rows are real queries, columns the episode's classes
(a padded class with probability 0 does no harm). Read the proper scores first: the plug-in calibration error is
biased upwards (about 0.05 at n = 100 queries of a perfectly calibrated predictor) and says nothing of one episode.
"""

from __future__ import annotations

import numpy as np

from .arrays import Numbers, probability_array
from .calibration import (
    BrierDecomposition,
    ReliabilityCurve,
    brier_decomposition,
    debiased_calibration_error,
    expected_calibration_error,
    reliability_curve,
    reliability_intervals,
)
from .groups import worst_group
from .intervals import Interval, bootstrap_interval, episode_interval, episode_quantile
from .misrouting import MisroutingDetection, excess_loss, misrouting_detection
from .selective import RiskCoverageCurve, augrc, aurc, auroc, excess_aurc, risk_coverage_curve

__all__ = [
    "BrierDecomposition",
    "Interval",
    "MisroutingDetection",
    "ReliabilityCurve",
    "RiskCoverageCurve",
    "augrc",
    "aurc",
    "auroc",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "debiased_calibration_error",
    "episode_interval",
    "episode_quantile",
    "excess_aurc",
    "excess_loss",
    "expected_calibration_error",
    "misrouting_detection",
    "negative_log_likelihood",
    "reliability_curve",
    "reliability_intervals",
    "risk_coverage_curve",
    "worst_group",
]


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
