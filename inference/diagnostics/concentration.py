r"""Concentration: does the posterior close in on the true routing as shots are added, and at which rate?

Nested supports (prefixes) of the same episodes -> posteriors at every number of shots -> entropy, KL to the prior,
1 - q(true), contraction and z-scores, and the exponent r of :math:`E[1 - q(\text{true})] \approx C e^{-r n}` beside the
Bhattacharyya and Chernoff rates where the laws of the supports are known (Bayes-routed SMAT, theorem 7.1, as a
picture).

Contraction :math:`1 - \mathrm{tr}\,\mathrm{Var}_q / \mathrm{tr}\,\mathrm{Var}_p` is not clipped: below 0 the posterior
is wider than the prior. A posterior may contract and be wrong: the z-scores (mean square 1 if calibrated) and the error
rate beside the doubt that it admits say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyro_smat.float64 import in_float64
from pyro_smat.metrics.arrays import FloatArray

FEWEST_SHOTS = 3
SMALLEST = 1e-300


@dataclass(frozen=True)
class Exponent:
    """The rate of an exponential decay in shots, with a 95 % bootstrap interval over episodes, in nats per shot."""

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Concentration:
    """S numbers of shots, B episodes.

    Attributes:
        shots: ``(S,)`` ascending.
        entropy, kl: ``(S, B)`` of the posterior and to the prior, in nats; None from draws.
        doubt: ``(S, B)`` 1 - q(true), NaN where the route is not known; None from draws.
        error, admitted: ``(S,)`` how often the most probable routing is wrong, and how often it says so (1 - max q);
            equal if calibrated, error above admitted if it is sure too soon. None from draws.
        contraction: ``(S, B)``.
        z: ``(S, B, D)`` (mean - truth) / sd by coordinate, NaN where there is no truth or no spread.
        exponent: of the mean doubt; None from draws.
        chernoff, bhattacharyya: the rates of theory in nats per shot, NaN where the laws are not known.
    """

    shots: np.ndarray
    contraction: FloatArray
    z: FloatArray
    entropy: FloatArray | None = None
    kl: FloatArray | None = None
    doubt: FloatArray | None = None
    error: FloatArray | None = None
    admitted: FloatArray | None = None
    exponent: Exponent | None = None
    chernoff: float = float("nan")
    bhattacharyya: float = float("nan")

    @property
    def z_mean_square(self) -> FloatArray:
        """``(S,)``, 1 if calibrated, larger if too narrow or in the wrong place."""
        return np.array([np.nanmean(row**2) if np.isfinite(row).any() else np.nan for row in self.z])

    def beside(self, laws: Tensor, scale: float = 1.0) -> Concentration:
        """The same with the rates of theory for laws ``(J, V)`` of an observation, ``scale`` observations a shot."""
        bhattacharyya, chernoff = route_exponents(laws)
        return replace(self, bhattacharyya=scale * bhattacharyya, chernoff=scale * chernoff)


def concentration(
    shots: Sequence[int],
    probabilities: FloatArray,
    prior: FloatArray,
    *,
    truth: np.ndarray | None = None,
    coefficients: FloatArray | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> Concentration:
    """Concentration of catalog posteriors.

    Args:
        shots: S >= 3 numbers, ascending.
        probabilities: ``(S, B, J)`` on nested supports of the same B episodes.
        prior: ``(J,)``.
        truth: ``(B,)`` true routing, -1 where it is not known.
        coefficients: ``(J, D)`` of the routings; default one-hot.
        resamples, seed: of the bootstrap over episodes.

    Raises:
        ValueError: for fewer than three numbers of shots, unsorted ones, or shapes that do not match.
    """
    q, p = np.asarray(probabilities, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    levels = _check_shots(shots, len(q))
    rows = np.eye(q.shape[2]) if coefficients is None else np.asarray(coefficients, dtype=np.float64)
    if q.ndim != 3 or p.shape != q.shape[2:] or len(rows) != len(p):
        raise ValueError(f"probabilities are {q.shape}, the prior {p.shape}; expected (shots, episodes, J) and (J,)")
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(q > 0, q * np.log(q), 0.0).sum(-1)
        kl = np.where(q > 0, q * (np.log(q) - np.log(p)), 0.0).sum(-1)
    mean = q @ rows
    variance = np.clip(q @ rows**2 - mean**2, 0.0, None)
    of_prior = float((p @ rows**2 - (p @ rows) ** 2).sum())
    truth = np.full(q.shape[1], -1) if truth is None else np.asarray(truth)
    known = truth >= 0
    index = np.broadcast_to(truth.clip(0)[None, :, None], (*q.shape[:2], 1))
    own = np.take_along_axis(q, index, axis=2)[..., 0]
    doubt = np.where(known, np.where(own < 0.5, 1 - own, _sum_of_others(q, truth.clip(0))), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(known[:, None] & (variance > 1e-12), (mean - rows[truth.clip(0)]) / np.sqrt(variance), np.nan)
    some = bool(known.any())
    return Concentration(
        shots=levels,
        contraction=1 - variance.sum(-1) / of_prior,
        z=z,
        entropy=entropy,
        kl=kl,
        doubt=doubt,
        error=(q.argmax(-1) != truth)[:, known].mean(1) if some else np.full(len(q), np.nan),
        admitted=(1 - q.max(-1))[:, known].mean(1) if some else (1 - q.max(-1)).mean(1),
        exponent=fitted_exponent(levels, doubt[:, known], resamples=resamples, seed=seed) if some else None,
    )


def concentration_of_draws(
    shots: Sequence[int], draws: FloatArray, prior_draws: FloatArray, *, truth: FloatArray | None = None
) -> Concentration:
    """Concentration of posteriors on the simplex, from draws of its isometric log-ratio coordinates.

    Args:
        shots: S >= 3 numbers, ascending.
        draws: ``(S, K, B, D)``; prior_draws: ``(K', D)``.
        truth: ``(B, D)``, NaN where it is not known.

    Raises:
        ValueError: as :func:`concentration`.
    """
    draws, prior_draws = np.asarray(draws, dtype=np.float64), np.asarray(prior_draws, dtype=np.float64)
    levels = _check_shots(shots, len(draws))
    if draws.ndim != 4 or prior_draws.shape[1:] != draws.shape[3:]:
        raise ValueError(f"draws are {draws.shape} and prior draws {prior_draws.shape}; expected (S, K, B, D), (K', D)")
    variance, mean = draws.var(1, ddof=1), draws.mean(1)
    truth = np.full(draws.shape[2:], np.nan) if truth is None else np.asarray(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(variance > 1e-12, (mean - truth) / np.sqrt(variance), np.nan)
    return Concentration(shots=levels, contraction=1 - variance.sum(-1) / prior_draws.var(0, ddof=1).sum(), z=z)


def fitted_exponent(shots: np.ndarray, doubt: FloatArray, *, resamples: int = 500, seed: int = 0) -> Exponent:
    """Slope of -log mean doubt over shots by least squares, with a bootstrap over episodes.

    Args:
        shots: ``(S,)``; doubt: ``(S, B)`` in [0, 1].
    """
    centred = shots - shots.mean()

    def slope(means: FloatArray) -> FloatArray:
        return -(np.log(np.clip(means, SMALLEST, None)) @ centred) / (centred**2).sum()

    generator = np.random.default_rng(seed)
    size = doubt.shape[1]
    weights = generator.multinomial(size, np.full(size, 1 / size), resamples) / size  # (resamples, B)
    low, high = np.quantile(slope(weights @ doubt.T), (0.025, 0.975))
    return Exponent(float(slope(doubt.mean(1))), float(low), float(high))


def route_exponents(laws: Tensor) -> tuple[float, float]:
    r"""The Bhattacharyya and the Chernoff rate of the least distinguishable pair of laws ``(J, V)``, in nats.

    :math:`-\log \sum_v \sqrt{p_v q_v} \le -\log \min_s \sum_v p_v^s q_v^{1-s}`; the error of the Bayes router decays
    with the second, up to a polynomial factor.
    """
    half, best = math.inf, math.inf
    rows = in_float64(laws)
    for a in range(len(rows)):
        for b in range(a + 1, len(rows)):
            p, q = rows[a], rows[b]

            def coefficient(s: float, p: Tensor = p, q: Tensor = q) -> float:
                return float((p.pow(s) * q.pow(1 - s)).sum())

            middle = coefficient(0.5)
            found = minimize_scalar(coefficient, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-9})
            half = min(half, -math.log(middle))
            best = min(best, -math.log(min(float(found.fun), middle)))
    return half, best


def _sum_of_others(q: FloatArray, truth: np.ndarray) -> FloatArray:
    """1 - q(true) as a sum: it stays exact where q(true) rounds to 1."""
    others = q.copy()
    others[:, np.arange(q.shape[1]), truth] = 0.0
    return others.sum(-1)


def _check_shots(shots: Sequence[int], count: int) -> np.ndarray:
    found = np.asarray(shots)
    if len(found) != count or len(found) < FEWEST_SHOTS or (np.diff(found) <= 0).any():
        raise ValueError(
            f"shots are {list(shots)} for {count} posteriors; "
            f"expected at least {FEWEST_SHOTS} ascending numbers, one each"
        )
    return found
