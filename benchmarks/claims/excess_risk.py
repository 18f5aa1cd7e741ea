r"""Excess risk of the mixture and of the sparse residual, each alone, in the sequence model.

With :math:`X^\top X = n I` and noise of variance 1 one observes :math:`y = \theta + \varepsilon/\sqrt n`, and
:math:`\tfrac1n\|X(\hat\theta - \theta)\|^2 = \|\hat\theta - \theta\|^2`. With orthonormal sources the exact
empirical risk minimiser of a mixture is the projection of the observed weights onto the simplex, that of a k-sparse
vector keeps the k largest entries of y. Units: sigma = 1, length of a source = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyro_smat.metrics.arrays import FloatArray

from .finding import Finding, fitted, log_slope, mean_columns
from .simplex import project_onto_simplex


def mixture_errors(weights: FloatArray, examples: float, repetitions: int, rng: np.random.Generator) -> FloatArray:
    """Squared errors ``(repetitions,)`` of the fitted mixture at true weights ``(R,)`` from ``examples`` shots."""
    noise = rng.standard_normal((repetitions, len(weights))) / math.sqrt(examples)
    return np.sum((project_onto_simplex(weights + noise) - weights) ** 2, axis=1)


def sparse_errors(dim: int, budget: int, amplitude: float, repetitions: int, rng: np.random.Generator) -> FloatArray:
    """n times the squared errors ``(repetitions,)`` of best-k-subset, k true entries of ``amplitude`` / sqrt n."""
    truth = np.where(np.arange(dim) < budget, amplitude, 0.0)
    observed = truth + rng.standard_normal((repetitions, dim))
    kept = np.argpartition(-np.abs(observed), budget - 1, axis=1)[:, :budget]
    fitted_values = np.zeros_like(observed)
    np.put_along_axis(fitted_values, kept, np.take_along_axis(observed, kept, axis=1), axis=1)
    return np.sum((fitted_values - truth) ** 2, axis=1)


def hard_amplitude(dim: int, budget: int) -> float:
    """The amplitude sqrt(2 ln(d/k)) at which a true entry looks like the largest noise: about the worst one."""
    return math.sqrt(2 * math.log(dim / budget))


def mixture_rate(repetitions: int = 8000, seed: int = 0) -> Finding:
    """Interior weights, no residual: n risk = R - 1, so the slope is -1 in n and 1 in R - 1."""
    rng = np.random.default_rng(seed)
    cases = [("n", 8, n) for n in (3e3, 1e4, 1e5, 1e6)] + [("R", sources, 1e6) for sources in (4, 8, 16, 32, 64)]
    rows = []
    for sweep, sources, examples in cases:
        errors = mixture_errors(np.full(sources, 1 / sources), examples, repetitions, rng)
        case = {"sweep": sweep, "R": sources, "n": int(examples), "R - 1": sources - 1}
        rows.append({**case, **mean_columns("n risk", examples * errors), **mean_columns("risk", errors)})
    table = pd.DataFrame(rows)
    in_n, in_sources = table[table.sweep == "n"], table[table.sweep == "R"]
    return Finding(
        "Mixture alone, weights inside the simplex: the excess risk is (R - 1) / n exactly.",
        table,
        {
            "slope of log risk in log n": log_slope(in_n.n, in_n, "risk"),
            "slope of log risk in log (R - 1)": log_slope(in_sources["R - 1"], in_sources, "risk"),
        },
        seed,
        {"repetitions": repetitions},
    )


def sparse_rate(repetitions: int = 600, seed: int = 0) -> Finding:
    """Worst amplitude: n risk is about 2 k ln(d/k). Strong signal: n risk = k, the logarithm is gone.

    The worst amplitude is searched with other draws than those reported.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for dim in (256, 1024, 4096, 16384):
        for budget in (2, 8, 32):
            unit, multiples = hard_amplitude(dim, budget), (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
            risks = [sparse_errors(dim, budget, m * unit, repetitions // 6, rng).mean() for m in multiples]
            worst = multiples[int(np.argmax(risks))]
            at_worst = sparse_errors(dim, budget, worst * unit, repetitions, rng)
            strong = sparse_errors(dim, budget, 10 * math.sqrt(math.log(dim)), repetitions, rng)
            rows.append(
                {
                    "d": dim,
                    "k": budget,
                    "worst amplitude": worst,
                    **mean_columns("n risk, worst", at_worst),
                    "over k ln(d/k)": at_worst.mean() / (budget * math.log(dim / budget)),
                    **mean_columns("n risk, strong", strong),
                }
            )
    table = pd.DataFrame(rows)
    complexity = [k * math.log(d / k) for d, k in zip(table.d, table.k, strict=True)]
    missed = (table["n risk, strong low"] > table.k) | (table["n risk, strong high"] < table.k)
    return Finding(
        "Residual alone: k ln(d/k) / n at the worst amplitude (in sqrt(2 ln(d/k) / n)), k / n at strong signal.",
        table,
        {
            "slope of log n risk in log(k ln(d/k)), worst": log_slope(complexity, table, "n risk, worst"),
            "least n risk / (k ln(d/k)), worst": float(table["over k ln(d/k)"].min()),
            "largest n risk / (k ln(d/k)), worst": float(table["over k ln(d/k)"].max()),
            "slope of log n risk in log k, strong": log_slope(table.k, table, "n risk, strong"),
            "intervals of strong n risk without k, of 12": int(missed.sum()),
        },
        seed,
        {"repetitions": repetitions},
    )


def sparse_amplitudes(dim: int = 4096, budget: int = 8, repetitions: int = 400, seed: int = 0) -> Finding:
    """The risk over all amplitudes: largest a little below sqrt(2 ln(d/k) / n), k / n from about twice that on."""
    rng = np.random.default_rng(seed)
    rows = []
    for multiple in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0):
        errors = sparse_errors(dim, budget, multiple * hard_amplitude(dim, budget), repetitions, rng)
        rows.append({"amplitude": multiple, **mean_columns("n risk", errors)})
    table = pd.DataFrame(rows)
    return Finding(
        "Where the logarithm lives: risk of the residual over the amplitude of its entries (in sqrt(2 ln(d/k) / n)).",
        table,
        {
            "amplitude of the largest risk": float(table.amplitude[table["n risk"].argmax()]),
            "2 k ln(d/k)": 2 * budget * math.log(dim / budget),
        },
        seed,
        {"d": dim, "k": budget, "repetitions": repetitions},
    )


def convex_aggregation(
    examples: int = 100, sources: Sequence[int] = (4, 16, 64, 256, 1024, 4096), repetitions: int = 400, seed: int = 0
) -> Finding:
    """The rate of a mixture is min{R/n, sqrt(ln(1 + R/sqrt n) / n)}; at a vertex it is about ln R / n.

    The worst weights are searched among equal weights on 1, 2, 4, ... sources, with other draws than those reported.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for count in sources:
        spread = [1 << j for j in range(int(math.log2(count)) + 1)]
        truths = [np.where(np.arange(count) < active, 1 / active, 0.0) for active in spread]
        risks = [mixture_errors(truth, examples, repetitions // 2, rng).mean() for truth in truths]
        worst = int(np.argmax(risks))
        rows.append(
            {
                "R": count,
                "hardest spread": spread[worst],
                **mean_columns("worst risk", mixture_errors(truths[worst], examples, repetitions, rng)),
                "R/n": count / examples,
                "sqrt(ln(1 + R/sqrt n)/n)": math.sqrt(math.log(1 + count / math.sqrt(examples)) / examples),
                **mean_columns("n risk, vertex", examples * mixture_errors(truths[0], examples, repetitions, rng)),
            }
        )
    table = pd.DataFrame(rows)
    formula = np.minimum(table["R/n"], table["sqrt(ln(1 + R/sqrt n)/n)"])
    logs = [(1.0, math.log(count)) for count in sources]
    return Finding(
        "Mixture of many sources: the worst risk follows min{R/n, sqrt(ln(1 + R/sqrt n) / n)}, not R/n.",
        table,
        {
            "least worst risk / min{.,.}": float((table["worst risk"] / formula).min()),
            "largest worst risk / min{.,.}": float((table["worst risk"] / formula).max()),
            "(R/n) / worst risk at the largest R, at least": float((table["R/n"] / table["worst risk high"]).iloc[-1]),
            "slope of n risk in ln R, vertex": fitted(logs, table, "n risk, vertex").coefficients[1],
        },
        seed,
        {"n": examples, "repetitions": repetitions},
    )


def full_budget(dims: Sequence[int] = (4, 16, 64), repetitions: int = 4000, seed: int = 0) -> Finding:
    """At k = d the risk is d / n; k ln(d/k) says 0, k ln(ed/k) says d."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "d = k": dim,
            **mean_columns("n risk", sparse_errors(dim, dim, 1.0, repetitions, rng)),
            "k ln(d/k)": 0.0,
            "k ln(ed/k)": float(dim),
        }
        for dim in dims
    ]
    table = pd.DataFrame(rows)
    return Finding(
        "A residual that may use every coordinate: k ln(d/k) says that it costs nothing.",
        table,
        {"largest |n risk / (k ln(ed/k)) - 1|": float((table["n risk"] / table["k ln(ed/k)"] - 1).abs().max())},
        seed,
        {"repetitions": repetitions},
    )
