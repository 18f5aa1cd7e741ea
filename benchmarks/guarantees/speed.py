"""Seconds that every metric and bound takes on one core for many losses."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from pyro_smat import metrics
from pyro_smat.certificates import cvar_upper_bound, mean_p_value, mean_upper_bound
from pyro_smat.metrics.risk import cvar

WAY = 5
REPEATS = 3


def measure(count: int, seed: int) -> pd.DataFrame:
    """The fastest of three runs, in seconds of processor time, so that other programs do not count."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(WAY), count)
    y = np.minimum((p.cumsum(1) < generator.random((count, 1))).sum(1), WAY - 1)
    losses = generator.beta(2, 8, count)
    scores = losses + 0.1 * generator.random(count)
    wrong = generator.random(count) < scores
    tensor, pilot = torch.from_numpy(losses), generator.beta(2, 8, 200)
    work: dict[str, Callable[[], object]] = {
        "Brier score": lambda: metrics.brier_score(p, y),
        "Brier decomposition": lambda: metrics.brier_decomposition(p, y),
        "NLL": lambda: metrics.negative_log_likelihood(p, y),
        "ECE": lambda: metrics.expected_calibration_error(p, y),
        "ECE, adaptive": lambda: metrics.expected_calibration_error(p, y, binning="mass"),
        "ECE, debiased": lambda: metrics.debiased_calibration_error(p, y),
        "AURC": lambda: metrics.aurc(scores, losses),
        "excess AURC": lambda: metrics.excess_aurc(scores, losses),
        "AUGRC": lambda: metrics.augrc(scores, losses),
        "AUROC": lambda: metrics.auroc(scores, wrong),
        "CVaR": lambda: cvar(tensor, 0.1),
        "mean, betting bound": lambda: mean_upper_bound(losses),
        "mean, betting p-value": lambda: mean_p_value(losses, 0.2),
        "CVaR, betting bound": lambda: cvar_upper_bound(losses, 0.1),
        "CVaR, betting bound, pilot": lambda: cvar_upper_bound(losses, 0.1, threshold=pilot),
    }
    return pd.DataFrame([{"what": name, "seconds": _seconds(run)} for name, run in work.items()])


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return round(min(times), 3)
