"""Metrics: probabilities, losses and scores of episodes in, numbers with their uncertainty out.

All take arrays, lists or tensors and compute in float64 (``cvar`` and ``cvar_weights`` also work on batched tensors
with a gradient). Read the proper scores first: the plug-in calibration error is biased upwards (about 0.05 at n = 100
queries of a perfectly calibrated predictor) and says nothing of one episode.
"""

from pyro_smat.metrics.calibration import (
    BrierDecomposition,
    ReliabilityCurve,
    brier_decomposition,
    debiased_calibration_error,
    expected_calibration_error,
    reliability_curve,
    reliability_intervals,
)
from pyro_smat.metrics.groups import worst_group
from pyro_smat.metrics.intervals import Interval, bootstrap_interval, episode_interval, episode_quantile
from pyro_smat.metrics.misrouting import MisroutingDetection, excess_loss, misrouting_detection
from pyro_smat.metrics.risk import cvar, cvar_weights, value_at_risk
from pyro_smat.metrics.scoring import brier_score, negative_log_likelihood
from pyro_smat.metrics.selective import RiskCoverageCurve, augrc, aurc, auroc, excess_aurc, risk_coverage_curve

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
    "cvar",
    "cvar_weights",
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
    "value_at_risk",
    "worst_group",
]
