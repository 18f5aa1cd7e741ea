"""How often a bound of a mean or a CVaR fails, and how far above the truth it stands: simulated, the truth being exact.

One case is a loss, a number of episodes and a tail fraction; its samples are drawn once and given to every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from claims.finding import rate_interval
from guarantees.losses import LOSSES
from scipy.stats import norm

from pyro_smat.certificates import CVAR_METHODS, MEAN_METHODS, cvar_upper_bound, mean_upper_bound
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import Interval

COUNTS = (200, 1000, 5000)
RHOS = (0.05, 0.1, 0.2)
DELTA = 0.05
PILOT = 200  # losses of other episodes
NORMAL = "normal (no guarantee)"


@dataclass(frozen=True)
class Case:
    """One distribution, size and tail.

    Attributes:
        loss: a name in LOSSES.
        count: N.
        rho: tail fraction; 1 asks for the bounds of the mean.
    """

    loss: str
    count: int
    rho: float


@dataclass(frozen=True)
class Bounds:
    """Bounds of one case, method -> ``(repetitions,)``, and the mean or CVaR that they have to exceed."""

    case: Case
    truth: float
    by_method: dict[str, FloatArray]


def cases(counts: Sequence[int] = COUNTS, rhos: Sequence[float] = RHOS) -> list[Case]:
    """Every loss with every size, the mean first."""
    return [Case(loss, count, rho) for rho in (1.0, *rhos) for loss in LOSSES for count in counts]


def simulate(case: Case, repetitions: int, seed: int) -> Bounds:
    """Every bound of a case on so many independent samples."""
    loss = LOSSES[case.loss]
    generator = np.random.default_rng([seed, case.count, round(1000 * case.rho), list(LOSSES).index(case.loss)])
    found: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        sample, pilot = loss.draw(generator, (case.count,)), loss.draw(generator, (PILOT,))
        for method, bound in _bounds(case, sample, pilot, repetition):
            found.setdefault(method, []).append(bound)
    truth = loss.mean if case.rho == 1 else loss.cvar(case.rho)
    return Bounds(case, truth, {method: np.array(values) for method, values in found.items()})


def gaps(results: Sequence[Bounds]) -> pd.DataFrame:
    """Rows of cases, the mean of bound - truth in a column for each method."""
    return _table(results, lambda bounds, truth: f"{bounds.mean() - truth:.4f}")


def violations(results: Sequence[Bounds]) -> pd.DataFrame:
    """The same, with the share of samples whose bound is below the truth."""
    return _table(results, lambda bounds, truth: rate_text(_rate(bounds, truth)))


def summary(results: Sequence[Bounds]) -> pd.DataFrame:
    """A line a method: its cases, those whose whole interval is above delta, and its highest violation rate."""
    rates: dict[str, dict[Case, Interval]] = {}
    for result in results:
        for method, bounds in result.by_method.items():
            rates.setdefault(method, {})[result.case] = _rate(bounds, result.truth)
    rows = []
    for method, by_case in rates.items():
        worst = max(by_case, key=lambda case: by_case[case].value)
        rows.append(
            {
                "method": method,
                "cases": len(by_case),
                "refuted": sum(rate.low > DELTA for rate in by_case.values()),
                "highest violation rate": rate_text(by_case[worst]),
                "where": ", ".join(f"{name} {value}" for name, value in _name(worst).items()),
            }
        )
    return pd.DataFrame(rows)


def rate_text(rate: Interval) -> str:
    """A rate and its interval, three decimals."""
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _rate(bounds: FloatArray, truth: float) -> Interval:
    return rate_interval(int((bounds < truth).sum()), len(bounds))


def _table(results: Sequence[Bounds], cell: Callable[[FloatArray, float], str]) -> pd.DataFrame:
    rows = [
        {
            **_name(r.case),
            "truth": f"{r.truth:.4f}",
            **{method: cell(bounds, r.truth) for method, bounds in r.by_method.items()},
        }
        for r in results
    ]
    return pd.DataFrame(rows).fillna("")


def _name(case: Case) -> dict[str, object]:
    tail = {} if case.rho == 1 else {"rho": case.rho}
    return {"loss": case.loss, **tail, "N": case.count}


def _bounds(case: Case, sample: FloatArray, pilot: FloatArray, seed: int) -> Iterator[tuple[str, float]]:
    if case.rho == 1:
        for method in MEAN_METHODS:
            if method != "clopper-pearson" or case.loss == "bernoulli":
                yield method, mean_upper_bound(sample, DELTA, method, seed=seed).bound
        yield NORMAL, float(sample.mean() + norm.isf(DELTA) * sample.std(ddof=1) / math.sqrt(len(sample)))
        return
    for method in CVAR_METHODS:
        yield method, cvar_upper_bound(sample, case.rho, DELTA, method, seed=seed).bound
        if method == "betting":
            yield "betting, pilot", cvar_upper_bound(sample, case.rho, DELTA, threshold=pilot, seed=seed).bound
    yield NORMAL, _normal_cvar(sample, case.rho)


def _normal_cvar(sample: FloatArray, rho: float) -> float:
    """Estimate + z x its asymptotic standard error, that of (X - t)_+ / rho; at most 1."""
    t = np.quantile(sample, 1 - rho, method="inverted_cdf")
    excess = np.maximum(sample - t, 0.0) / rho
    return float(min(1.0, t + excess.mean() + norm.isf(DELTA) * excess.std(ddof=1) / math.sqrt(len(sample))))
