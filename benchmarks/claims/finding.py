"""What a simulation found: a table, a few facts with intervals, and the seed that gives them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import beta
from scipy.stats import t as student_t

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import Interval, episode_interval


@dataclass(frozen=True)
class Finding:
    """One claim as simulated.

    Attributes:
        claim: the sentence that the table shows.
        table: one row a case; columns ``x low`` and ``x high`` are the ends of a 95% interval of column ``x``.
        facts: name -> number, count or interval (95%).
        seed: of every random number in it.
        settings: sizes that hold for the whole table.
    """

    claim: str
    table: pd.DataFrame
    facts: Mapping[str, Interval | float | int]
    seed: int
    settings: Mapping[str, float | int] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = ", ".join(f"{name} = {number:g}" for name, number in {**self.settings, "seed": self.seed}.items())
        return f"{self.claim}\n({settings})\n\n{markdown(self.table)}\n\n{self.summary}"

    @property
    def summary(self) -> str:
        """The facts, a line each."""
        return "\n".join(f"- {name}: {_text(value)}" for name, value in self.facts.items())


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, every interval in the cell of its estimate."""
    ends = {end for name in table.columns for end in (f"{name} low", f"{name} high")}
    names = [name for name in table.columns if name not in ends]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in table.to_dict("records"):
        cells = [
            Interval(row[name], row[f"{name} low"], row[f"{name} high"]) if f"{name} low" in row else row[name]
            for name in names
        ]
        lines.append("| " + " | ".join(map(_text, cells)) + " |")
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def mean_columns(name: str, values: FloatArray) -> dict[str, float]:
    """Three columns of a table: the mean of ``(repetitions,)`` values and the ends of its interval."""
    found = episode_interval(values)
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high}


@dataclass(frozen=True)
class Fit:
    """A linear fit: a coefficient with its interval for each column of the design, and R squared."""

    coefficients: tuple[Interval, ...]
    r_squared: float


def fit(design: npt.ArrayLike, values: FloatArray, errors: FloatArray) -> Fit:
    r"""Weighted least squares of independent values ``(m,)`` with standard errors ``(m,)`` on a design ``(m, p)``.

    Intervals (95%, Student with m - p degrees of freedom) are widened by the root of the reduced chi square where the
    model misses the values by more than their errors (Birge 1932), so that lack of fit is not hidden.
    """
    columns = np.asarray(design, dtype=np.float64)
    scaled = columns / errors[:, None]
    covariance = np.linalg.inv(scaled.T @ scaled)
    estimate = covariance @ scaled.T @ (values / errors)
    residual = values - columns @ estimate
    freedom = len(values) - columns.shape[1]
    birge = max(1.0, float(np.sum((residual / errors) ** 2)) / freedom)
    half = student_t.ppf(0.975, freedom) * np.sqrt(birge * np.diag(covariance))
    intervals = tuple(Interval(float(e), float(e - h), float(e + h)) for e, h in zip(estimate, half, strict=True))
    return Fit(intervals, 1 - float(np.sum(residual**2) / np.sum((values - values.mean()) ** 2)))


def fitted(design: npt.ArrayLike, table: pd.DataFrame, name: str) -> Fit:
    """``fit`` of a column made by ``mean_columns``."""
    return fit(design, table[name].to_numpy(), _errors(table, name))


def log_slope(x: Sequence[float], table: pd.DataFrame, name: str) -> Interval:
    """Slope of the logarithm of a column of ``mean_columns`` on log x; relative errors serve as errors of the log."""
    values = table[name].to_numpy()
    return fit([(1.0, math.log(v)) for v in x], np.log(values), _errors(table, name) / values).coefficients[1]


def _errors(table: pd.DataFrame, name: str) -> FloatArray:
    return (table[f"{name} high"] - table[f"{name} low"]).to_numpy() / (2 * 1.96)


def rate_interval(count: int, total: int) -> Interval:
    """``count`` of ``total`` as a rate, with the Clopper-Pearson interval."""
    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return Interval(count / total, low, high)
