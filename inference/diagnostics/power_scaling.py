r"""Power scaling: how much the posterior of every episode leans on its prior (Kallioinen et al. 2024).

The prior is raised to a power alpha near 1 and the posterior reweighted; the sensitivity is the distance it moves, a
unit of log2 alpha. Above about .05 the prior matters for this episode. Per episode: adding the prior of all episodes
up, as tools for one joint posterior do, answers another question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.inference.diagnostics.pareto import khat_threshold
from pyro_smat.inference.diagnostics.pareto_tail import smooth
from pyro_smat.metrics.arrays import FloatArray

ALPHAS = (0.99, 1.01)
SENSITIVE = 0.05


@dataclass(frozen=True)
class PowerScaling:
    """Sensitivity to the prior.

    Attributes:
        sensitivity: ``(B,)`` of a catalog, ``(B, C)`` by coefficient from draws; 0 for a uniform prior.
        khat: ``(B,)`` the larger of both powers', -inf where exact.
        refused: ``(B,)`` bool; their sensitivity is NaN.
    """

    sensitivity: FloatArray
    khat: FloatArray
    refused: np.ndarray


def catalog_power_scaling(probabilities: FloatArray, prior: FloatArray) -> PowerScaling:
    r"""Exact sensitivity ``(B,)`` by the Jensen-Shannon distance between q and :math:`q\,p^{\alpha - 1}`, in bits.

    For alpha near 1 it is :math:`\sqrt{\ln 2 / 8}\; \mathrm{sd}_q(\log p)`.

    Args:
        probabilities: ``(B, J)``; prior: ``(J,)``.
    """
    q, p = np.asarray(probabilities, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    log_p = np.log(np.where(p > 0, p, 1.0))
    rates = []
    for alpha in ALPHAS:
        scaled = q * np.exp((alpha - 1) * (log_p - log_p.max()))
        scaled /= scaled.sum(1, keepdims=True)
        rates.append(_js_distance(q, scaled) / abs(np.log2(alpha)))
    exact = np.full(len(q), -np.inf)
    return PowerScaling(np.mean(rates, axis=0), exact, np.zeros(len(q), dtype=bool))


def power_scaling(values: FloatArray, log_prior: FloatArray) -> PowerScaling:
    """Sensitivity by coefficient from draws, with Pareto-smoothed weights and their k-hat kept.

    Args:
        values: ``(K, B, D)`` draws of D quantities.
        log_prior: ``(K, B)`` at the draws.

    Raises:
        ValueError: for shapes that do not match or NaN in ``log_prior``.
    """
    from arviz_stats.base import array_stats

    values, log_prior = np.asarray(values, dtype=np.float64), np.asarray(log_prior, dtype=np.float64)
    if values.shape[:2] != log_prior.shape or values.ndim != 3:
        raise ValueError(f"values are {values.shape} and log_prior {log_prior.shape}; expected (K, B, D) and (K, B)")
    if np.isnan(log_prior).any():
        raise ValueError("log_prior holds NaN; expected the log density of the prior at every draw")
    weights, khats = zip(*(smooth((alpha - 1) * log_prior.T) for alpha in ALPHAS), strict=True)
    # A per cent of a power hardly moves the weights: rounding has no tail, and equal ones none either.
    khat = np.maximum(*khats)
    refused = khat > khat_threshold(len(values))
    sensitivity = np.full(values.shape[1:], np.nan)
    for b in np.flatnonzero(~refused):
        lower, upper = np.exp(weights[0][b]), np.exp(weights[1][b])
        if np.ptp(log_prior[:, b]) < 1e-12:
            sensitivity[b] = 0.0
            continue
        for d in range(values.shape[2]):
            if np.ptp(values[:, b, d]) == 0:
                sensitivity[b, d] = 0.0
                continue
            sensitivity[b, d] = array_stats.power_scale_sense(values[None, :, b, d], lower[None], upper[None], *ALPHAS)
    return PowerScaling(sensitivity, khat, refused)


def _js_distance(a: FloatArray, b: FloatArray) -> FloatArray:
    middle = (a + b) / 2

    def kl(x: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(x > 0, x * np.log2(x / middle), 0.0).sum(-1)

    return np.sqrt(np.clip((kl(a) + kl(b)) / 2, 0.0, None))
