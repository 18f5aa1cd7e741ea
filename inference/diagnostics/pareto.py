r"""Pareto k-hat of every episode: is the guide wide enough for the posterior that it approximates?

Importance weights of draws c_k of q are :math:`w_k = p(c_k, \text{data}) / q(c_k)`. The shape k of the generalised
Pareto distribution that fits their tail says whether importance sampling from q can be trusted (Vehtari et al. 2024;
for variational inference Yao et al. 2018): below .5 well, up to min(1 - 1 / log10 K, .7) still. Always one value for
each episode: the weights of independent episodes are never added up, which would make any guide look bad.

k-hat sees a posterior that is wider than q. It does **not** see a guide that is a little too narrow (0.8 of the right
standard deviation has k-hat .4) or in the wrong place among wide tails: simulation-based calibration does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pyro_smat.inference.diagnostics.pareto_tail import logsumexp, smooth
from pyro_smat.metrics.arrays import FloatArray

FEWEST_DRAWS = 100


@dataclass(frozen=True)
class ParetoDiagnostic:
    """k-hat of B episodes.

    Attributes:
        khat: ``(B,)``; -inf where all weights are equal (q is the posterior), inf where hardly any draw has weight.
        ess: ``(B,)``, effective number of the K draws after smoothing, :math:`1 / \\sum_k \\bar w_k^2`.
        log_weights: ``(K, B)``, smoothed and normalised over draws.
        threshold: k-hat above it is not to be trusted at this K.
        reference: name of the target.
    """

    khat: FloatArray
    ess: FloatArray
    log_weights: FloatArray
    threshold: float
    reference: str

    @property
    def reliable(self) -> np.ndarray:
        """``(B,)`` bool, k-hat at most the threshold."""
        return self.khat <= self.threshold


def khat_per_episode(log_p: FloatArray, log_q: FloatArray, *, reference: str = "model") -> ParetoDiagnostic:
    """k-hat, effective sample size and smoothed weights of every episode.

    Args:
        log_p: ``(K, B)``, unnormalised log target at the draws; -inf where the target has no mass.
        log_q: ``(K, B)``, log density of the guide at its own draws.
        reference: name of the target, kept with the result.

    Raises:
        ValueError: for fewer than 100 draws, arrays that do not match, or NaN (a point posterior has no density).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> u = rng.standard_normal((1000, 3))  # q is standard normal, p has standard deviation 0.9
        >>> khat_per_episode(-0.5 * (u / 0.9) ** 2, -0.5 * u**2).reliable.tolist()
        [True, True, True]
    """
    log_p, log_q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if log_p.shape != log_q.shape or log_p.ndim != 2:
        raise ValueError(f"log_p has shape {log_p.shape} and log_q {log_q.shape}; expected (draws, episodes) for both")
    if len(log_p) < FEWEST_DRAWS:
        raise ValueError(f"got {len(log_p)} draws an episode; a tail needs at least {FEWEST_DRAWS}")
    if np.isnan(log_p).any() or not np.isfinite(log_q).all():
        raise ValueError(
            "log_p or log_q hold NaN, or log_q is infinite; expected densities: a point posterior has none, so "
            "there is no k-hat for it"
        )
    weights, khat = smooth((log_p - log_q).T)
    ess = np.exp(-logsumexp(2 * weights))
    return ParetoDiagnostic(khat, ess, weights.T, khat_threshold(len(log_p)), reference)


def khat_threshold(num_samples: int) -> float:
    """min(1 - 1 / log10 K, .7) (Vehtari et al. 2024)."""
    return min(1 - 1 / np.log10(num_samples), 0.7)


@dataclass(frozen=True)
class CatalogDiscrepancy:
    """How far a catalog posterior q is from a target p, exactly; B episodes.

    Attributes:
        forward_kl: ``(B,)`` KL(p || q), large where q misses routings of p.
        reverse_kl: ``(B,)`` KL(q || p).
        total_variation: ``(B,)`` in [0, 1].
        relative_ess: ``(B,)`` :math:`1 / \\sum_j p_j^2 / q_j`, the share of draws of q that count under p.
        reference: name of the target.
    """

    forward_kl: FloatArray
    reverse_kl: FloatArray
    total_variation: FloatArray
    relative_ess: FloatArray
    reference: str


def catalog_discrepancy(target: FloatArray, guide: FloatArray, *, reference: str = "model") -> CatalogDiscrepancy:
    """Exact distances of two posteriors over a catalog; the place of k-hat, which needs a density.

    Args:
        target, guide: ``(B, J)`` probabilities.
        reference: name of the target.

    Raises:
        ValueError: for rows that are no distributions or arrays that do not match.
    """
    p, q = np.asarray(target, dtype=np.float64), np.asarray(guide, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2:
        raise ValueError(f"target has shape {p.shape} and guide {q.shape}; expected (episodes, routings) for both")
    for what, rows in (("target", p), ("guide", q)):
        if (rows < 0).any() or not np.allclose(rows.sum(1), 1.0, atol=1e-4):
            raise ValueError(f"rows of {what} are no distributions; expected probabilities that sum to 1")

    def kl(a: FloatArray, b: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(a > 0, a * (np.log(a) - np.log(b)), 0.0).sum(1)

    with np.errstate(divide="ignore", invalid="ignore"):
        second_moment = np.where(p > 0, p**2 / q, 0.0).sum(1)
    return CatalogDiscrepancy(kl(p, q), kl(q, p), 0.5 * np.abs(p - q).sum(1), 1 / second_moment, reference)
