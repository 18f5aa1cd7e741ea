"""Paired differences: how far a competitor is ahead of the deployed rule on the same episodes, with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import bootstrap_interval, episode_interval
from pyro_smat.metrics.risk import cvar

REPEATS = 2000


def paired_intervals(
    evaluations: Mapping[str, Evaluation], methods: Mapping[str, str], rule: str
) -> Callable[[str, str, str], tuple[float, float] | None]:
    """What :func:`pyro_smat.report.page.losing_sentences` asks: title of a table, column, row -> 95% interval.

    Means are compared by Student's interval of the episodes' differences, tails by a bootstrap that draws the same
    episodes for both; other quantities have no interval.

    Args:
        evaluations: column -> evaluation.
        methods: method -> row.
        rule: the method that is ours.
    """
    by_row = {row: method for method, row in methods.items()}

    def ahead(title: str, column: str, row: str) -> tuple[float, float] | None:
        evaluation, other = evaluations[column], by_row[row]
        if title == "Accuracy":
            gap = episode_interval(100 * (evaluation.accuracy(other) - evaluation.accuracy(rule)))
        elif title == "Negative log-likelihood":
            gap = episode_interval(evaluation.loss(rule) - evaluation.loss(other))
        elif title == "Tail of the loss, CVaR 0.1":
            return tail_gap(evaluation.loss(rule), evaluation.loss(other))
        elif title == "Tail regret, CVaR 0.1":
            return tail_gap(evaluation.regret(rule), evaluation.regret(other))
        else:
            return None
        return gap.low, gap.high

    return ahead


def tail_gap(ours: FloatArray, theirs: FloatArray, rho: float = 0.1) -> tuple[float, float]:
    """95% percentile interval of CVaR(ours) - CVaR(theirs) over the worst ``rho`` of paired episodes ``(N,)``."""

    def gap(rows: FloatArray) -> FloatArray:
        first, second = (cvar(torch.from_numpy(rows[..., k].copy()), rho) for k in range(2))
        return (first - second).numpy()

    found = bootstrap_interval(np.stack([ours, theirs], axis=1), gap, resamples=REPEATS, vectorized=True)
    return found.low, found.high
