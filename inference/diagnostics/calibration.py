"""Calibration of posteriors from truths: PIT values of several quantities, tests, effect size and power, on arrays.

posteriors and true routings of N episodes -> :class:`PosteriorCalibration`. Where the truths come from is the caller's:
a model that generates supports (``simulation.py``) or known routes of real episodes (``route_calibration.py``).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyro_smat.inference.diagnostics.sharpness import Sharpness, deviation_estimate, temperature_estimate
from pyro_smat.inference.diagnostics.uniformity import (
    FEWEST,
    coverage,
    holm,
    pit_of_catalog,
    pit_of_draws,
    power_against_narrow_gaussian,
    uniformity_p_value,
)
from pyro_smat.metrics.arrays import FloatArray

if TYPE_CHECKING:
    import xarray as xr

LEVELS = np.array([0.5, 0.8, 0.9, 0.95])
SHARPENING = 1.3
POWER_REPEATS = 100
TEMPERATURE = "temperature"


@dataclass(frozen=True)
class PosteriorCalibration:
    """Whether truths look like draws of the posteriors.

    Attributes:
        pits: quantity -> ``(N,)`` PIT values, uniform if calibrated.
        p_values: quantity -> p-value of uniformity, and of a catalog "temperature" -> likelihood-ratio test of T = 1;
            adjusted: after Holm.
        p_value: of all quantities together, the smallest adjusted one.
        coverage: quantity -> share of truths inside central intervals of the :data:`LEVELS`.
        sharpness: how much too sharp: temperature of a catalog, else of the largest deviation among quantities.
        power: chance that this N shows a posterior p^1.3 (a catalog) or 0.8 of the standard deviation, at level .05.
        population, reference: what the truths are, and what the posterior is judged by.
    """

    pits: Mapping[str, FloatArray]
    p_values: Mapping[str, float]
    adjusted: Mapping[str, float]
    p_value: float
    coverage: Mapping[str, FloatArray]
    sharpness: Sharpness
    power: float
    population: str
    reference: str

    @property
    def num_episodes(self) -> int:
        return len(next(iter(self.pits.values())))

    @property
    def rejected(self) -> tuple[str, ...]:
        """Quantities that reject at .05 after Holm."""
        return tuple(name for name, p in self.adjusted.items() if p < 0.05)

    def to_dataset(self) -> xr.Dataset:
        """PIT values and p-values by quantity."""
        import xarray as xr

        names = list(self.pits)
        return xr.Dataset(
            {
                "pit": (("quantity", "episode"), np.stack([self.pits[name] for name in names])),
                "p_value": (("quantity",), np.array([self.p_values[name] for name in names])),
                "adjusted_p_value": (("quantity",), np.array([self.adjusted[name] for name in names])),
                "coverage": (("quantity", "level"), np.stack([self.coverage[name] for name in names])),
            },
            {"quantity": names, "level": LEVELS},
            {"population": self.population, "reference": self.reference, "power": self.power},
        )


def catalog_calibration(
    probabilities: FloatArray,
    truth: np.ndarray,
    quantities: Mapping[str, FloatArray],
    *,
    population: str,
    reference: str,
    seed: int = 0,
    power_repeats: int = POWER_REPEATS,
) -> PosteriorCalibration:
    """Calibration of posteriors over a catalog, without any draws.

    Args:
        probabilities: ``(N, J)``, N >= 100.
        truth: ``(N,)`` true routings in [0, J).
        quantities: name -> ``(N, J)`` or ``(J,)``; see :func:`catalog_quantities`.
        population, reference: kept with the result.
        seed: of the randomisation of ties and of the power.
        power_repeats: simulations of the power; 0 leaves it NaN.

    Raises:
        ValueError: for fewer than 100 episodes, NaN in a quantity, truths outside the catalog, or no distributions.
    """
    q, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    _check_catalog(q, truth, quantities)
    generator = _tie_breaker(seed, q)
    pits = {name: pit_of_catalog(values, q, truth, generator) for name, values in quantities.items()}
    power = _catalog_power(q, quantities, generator, power_repeats) if power_repeats else float("nan")
    return _result(pits, temperature_estimate(q, truth), power, population, reference)


def draws_calibration(
    draws: Mapping[str, FloatArray],
    truths: Mapping[str, FloatArray],
    *,
    population: str,
    reference: str,
    seed: int = 0,
    power_repeats: int = POWER_REPEATS,
) -> PosteriorCalibration:
    """Calibration from draws of continuous or discrete quantities.

    Args:
        draws: name -> ``(K, N)``, N >= 100.
        truths: name -> ``(N,)``.
        population, reference, seed, power_repeats: as in :func:`catalog_calibration`.

    Raises:
        ValueError: for fewer than 100 episodes, NaN, or names and shapes that do not match.
    """
    if set(draws) != set(truths) or not draws:
        raise ValueError(f"draws have quantities {sorted(draws)} and truths {sorted(truths)}; expected the same, some")
    for name, values in draws.items():
        shape = np.shape(values)
        if len(shape) != 2 or shape[1:] != np.shape(truths[name]):
            raise ValueError(
                f"quantity {name!r} has draws {shape} and truths {np.shape(truths[name])}; expected (K, N) and (N,)"
            )
        _check_values(name, values, shape[1])
        _check_values(name, truths[name], shape[1])
    generator = _tie_breaker(seed, *draws.values())
    pits = {name: pit_of_draws(values, truths[name], generator) for name, values in draws.items()}
    level = 1 - 0.05 / len(pits)  # the worst of several is chosen
    worst = max((deviation_estimate(u, level=level) for u in pits.values()), key=lambda s: abs(np.log(s.estimate)))
    n = len(next(iter(pits.values())))
    power = (
        power_against_narrow_gaussian(n, tests=len(pits), repeats=power_repeats, seed=seed)
        if power_repeats
        else float("nan")
    )
    return _result(pits, worst, power, population, reference)


def _result(
    pits: Mapping[str, FloatArray], sharpness: Sharpness, power: float, population: str, reference: str
) -> PosteriorCalibration:
    p_values = {name: uniformity_p_value(u) for name, u in pits.items()}
    if not np.isnan(sharpness.p_value):
        p_values[TEMPERATURE] = sharpness.p_value
    adjusted = holm(p_values)
    return PosteriorCalibration(
        pits=dict(pits),
        p_values=p_values,
        adjusted=adjusted,
        p_value=min(adjusted.values()),
        coverage={name: coverage(u, LEVELS) for name, u in pits.items()},
        sharpness=sharpness,
        power=power,
        population=population,
        reference=reference,
    )


def _catalog_power(
    q: FloatArray, quantities: Mapping[str, FloatArray], generator: np.random.Generator, repeats: int
) -> float:
    """Were the truths draws of q^(1 / 1.3), would the test see it?"""
    flat = q ** (1 / SHARPENING)
    cumulative = (flat / flat.sum(1, keepdims=True)).cumsum(1)
    seen = 0
    for _ in range(repeats):
        truth = (cumulative < generator.random((len(q), 1))).sum(1).clip(max=q.shape[1] - 1)
        p = {name: uniformity_p_value(pit_of_catalog(v, q, truth, generator)) for name, v in quantities.items()}
        p[TEMPERATURE] = temperature_estimate(q, truth).p_value
        seen += min(p.values()) < 0.05 / len(p)  # what Holm rejects first
    return seen / repeats


def _tie_breaker(seed: int, *arrays: FloatArray) -> np.random.Generator:
    """Random numbers that differ between data sets of the same seed: one unlucky stream would be unlucky for all."""
    return np.random.default_rng([seed, *(zlib.crc32(np.ascontiguousarray(array).tobytes()) for array in arrays)])


def _check_catalog(q: FloatArray, truth: np.ndarray, quantities: Mapping[str, FloatArray]) -> None:
    if q.ndim != 2 or truth.shape != q.shape[:1]:
        raise ValueError(f"probabilities are {q.shape} and truth is {truth.shape}; expected (N, J) and (N,)")
    if (q < 0).any() or not np.allclose(q.sum(1), 1.0, atol=1e-4):
        raise ValueError("rows of probabilities are no distributions; expected numbers >= 0 that sum to 1")
    if len(truth) and (truth.min() < 0 or truth.max() >= q.shape[1]):
        raise ValueError(f"truth runs from {truth.min()} to {truth.max()}; expected routings in [0, {q.shape[1]})")
    for name, values in quantities.items():
        _check_values(name, values, len(q))


def _check_values(name: str, values: FloatArray, episodes: int) -> None:
    if episodes < FEWEST:
        raise ValueError(f"got {episodes} episodes; calibration needs at least {FEWEST} to say anything")
    if np.isnan(values).any():
        raise ValueError(f"quantity {name!r} holds NaN; expected a number for every routing: leave it out")
