r"""Both parts at once, fitted by the package's solver: n risk = a (R - 1) + b k ln(d/k).

Orthonormal design, X = sqrt(n) I with n = d. The sources are Gaussian, of length 20, and touch every coordinate, so
that mixture and residual compete for the same data; weights are uniform, the entries of the residual at about the worst
amplitude of the residual alone. The solver searches supports heuristically, and without a ridge its lower bound says
little. So what it finds is *not* known to be the exact empirical risk minimiser; two checks say how near it is: brute
force over all supports of small tasks, and the loss of the true support, refitted, which no exact minimiser exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.solvers import solve_composition

from .exact_erm import Design
from .excess_risk import hard_amplitude
from .finding import Finding, fit, mean_columns, rate_interval

_LENGTH, _WORST, _ROUNDING = 20.0, 0.7, 1e-9


def draw_task(
    dim: int, sources: int, budget: int, rng: np.random.Generator
) -> tuple[Design, FloatArray, IntArray, FloatArray]:
    """A design, the true parameter ``(d,)``, its residual's support ``(k,)`` and targets ``(n,)``."""
    columns = rng.standard_normal((dim, sources)) * _LENGTH / math.sqrt(dim)
    support = rng.choice(dim, budget, replace=False)
    truth = columns.mean(axis=1)
    truth[support] += _WORST * hard_amplitude(dim, budget) / math.sqrt(dim) * rng.choice((-1.0, 1.0), budget)
    targets = math.sqrt(dim) * truth + rng.standard_normal(dim)
    return Design(math.sqrt(dim) * np.eye(dim), columns, budget), truth, support, targets


def fit_values(design: Design, targets: FloatArray) -> FloatArray:
    """The parameter ``(d,)`` that the package's solver finds."""
    found = solve_composition(
        design.features, targets, design.sources.T, budget=design.budget, ridge=0.0, bound_iterations=0
    )
    return design.sources @ found.weights + found.residual


def true_support_loss(design: Design, support: IntArray, targets: FloatArray) -> float:
    """Least sum of squares with the true support open; w >= 0 is idle, for uniform weights are many errors from 0."""
    first, rest = design.sources[:, :1], design.sources[:, 1:] - design.sources[:, :1]
    columns = design.features @ np.hstack([rest, np.eye(len(first))[:, support]])
    target = targets - (design.features @ first)[:, 0]
    return float(np.sum((target - columns @ np.linalg.lstsq(columns, target)[0]) ** 2))


def exact_share(tasks: int, rng: np.random.Generator, dim: int = 16, sources: int = 4, budget: int = 3) -> int:
    """Of small tasks of the same kind, those in which the solver's loss is that of brute force over all supports."""
    exact = 0
    for _ in range(tasks):
        design, _, _, targets = draw_task(dim, sources, budget, rng)
        best = np.sum((targets - design.minimise(targets[:, None])[:, 0]) ** 2)
        squares = np.sum((targets - design.features @ fit_values(design, targets)) ** 2)
        exact += int(squares <= best * (1 + _ROUNDING))
    return exact


def joint_rate(
    repetitions: int = 24,
    sources: Sequence[int] = (2, 8, 16),
    sizes: Sequence[tuple[int, int]] = ((64, 2), (64, 6), (256, 2), (256, 4), (256, 8)),
    seed: int = 0,
) -> Finding:
    """n risk of every number of sources with all sizes (d, k), and the two coefficients."""
    rng = np.random.default_rng(seed)
    rows, spreads, beaten = [], [], 0
    for count in sources:
        for dim, budget in sizes:
            losses = []
            for _ in range(repetitions):
                design, truth, support, targets = draw_task(dim, count, budget, rng)
                found = fit_values(design, targets)
                losses.append(dim * np.sum((found - truth) ** 2))
                squares = np.sum((targets - design.features @ found) ** 2)
                beaten += int(squares > true_support_loss(design, support, targets) * (1 + _ROUNDING))
            spreads.append(np.std(losses, ddof=1))
            rows.append(
                {
                    "R": count,
                    "n = d": dim,
                    "k": budget,
                    "k ln(d/k)": budget * math.log(dim / budget),
                    **mean_columns("n risk", np.array(losses)),
                }
            )
    table = pd.DataFrame(rows)
    terms = np.column_stack([table["R"] - 1, table["k ln(d/k)"]])
    # A few tasks do not tell the spread of a cell, so it is pooled, relative to a guess that no noise enters.
    guess = terms @ (1.0, 2.0)
    errors = guess * np.sqrt(np.mean((np.array(spreads) / guess) ** 2) / repetitions)
    line = fit(terms, table["n risk"].to_numpy(), errors)
    coefficients = [coefficient.value for coefficient in line.coefficients]
    small = exact_share(repetitions, rng)
    return Finding(
        "Mixture and residual together: n risk = a (R - 1) + b k ln(d/k).",
        table.assign(fitted=terms @ coefficients),
        {
            "a": line.coefficients[0],
            "b": line.coefficients[1],
            "R^2": line.r_squared,
            "small tasks (d = 16, R = 4, k = 3) solved exactly": rate_interval(small, repetitions),
            "tasks of the table": len(table) * repetitions,
            "of them, with a lower loss on the true support": beaten,
        },
        seed,
        {"repetitions": repetitions},
    )
