"""How often guarantees of decisions fail: thresholds of abstention, and alarms of drift.

Episodes for abstention have a score u uniform on [0, 1] and a mean loss of u^2 / 2, so that accepting up to eta has a
selective risk of eta^2 / 6: with a permitted risk of r one may accept sqrt(6 r) of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from claims.finding import rate_interval
from guarantees.coverage import rate_text

from pyro_smat.certificates import select_abstention_threshold
from pyro_smat.certificates.drift import ConformalMartingale
from pyro_smat.metrics.arrays import FloatArray

RISK = DELTA = 0.1
ALARM_LEVELS = (0.1, 0.01)
REFERENCE, STREAM = 100, 500
SHIFT = 0.5  # standard deviations
SCORES: dict[str, Callable[[FloatArray], FloatArray]] = {  # from standard normal numbers
    "continuous": lambda x: x,
    "three values": lambda x: np.clip(np.round(x), -1, 1),
}


def episodes(generator: np.random.Generator, count: int, *, binary: bool) -> tuple[FloatArray, FloatArray]:
    """Scores and losses ``(count,)``, 0/1 or in [0, 1]."""
    u = generator.random(count)
    mean = u**2 / 2
    losses = (generator.random(count) < mean).astype(float) if binary else generator.beta(5 * mean, 5 * (1 - mean))
    return u, losses


def selective_risk(threshold: float) -> float:
    """Exact; nothing accepted has no risk."""
    return max(0.0, min(1.0, threshold)) ** 2 / 6


def plug_in_threshold(scores: FloatArray, losses: FloatArray, risk: float) -> float:
    """The largest score up to which the mean loss of these very episodes is at most ``risk``."""
    order = np.argsort(scores)
    running = np.cumsum(losses[order]) / np.arange(1, len(losses) + 1)
    kept = np.flatnonzero(running <= risk)
    return float(scores[order[kept[-1]]]) if len(kept) else -math.inf


def simulate_abstention(binary: bool, count: int, repetitions: int, seed: int) -> dict[str, object]:
    """Violation rate and mean coverage of learn-then-test and of plug-in."""
    generator = np.random.default_rng([seed, count, binary])
    chosen: dict[str, list[float]] = {"learn then test": [], "plug-in": []}
    for repetition in range(repetitions):
        validation, _ = episodes(generator, 200, binary=binary)
        u, losses = episodes(generator, count, binary=binary)
        found = select_abstention_threshold(u, losses, RISK, DELTA, validation_scores=validation, seed=repetition)
        chosen["learn then test"].append(found.threshold)
        chosen["plug-in"].append(plug_in_threshold(u, losses, RISK))
    row: dict[str, object] = {
        "loss": "0/1" if binary else "in [0, 1]",
        "N": count,
        "best coverage": f"{math.sqrt(6 * RISK):.3f}",
    }
    for name, thresholds in chosen.items():
        violated = sum(selective_risk(t) > RISK for t in thresholds)
        row[f"{name}: violations"] = rate_text(rate_interval(violated, repetitions))
        row[f"{name}: coverage"] = f"{np.clip(thresholds, 0, 1).mean():.3f}"
    return row


def simulate_drift(kind: str, repetitions: int, seed: int) -> list[dict[str, object]]:
    """Alarms in streams like the reference, which are false, and in streams that are shifted from the first task on."""
    generator = np.random.default_rng([seed, list(SCORES).index(kind)])
    highest: dict[float, list[float]] = {0.0: [], SHIFT: []}
    for repetition in range(repetitions):
        for shift, maxima in highest.items():
            stream = generator.standard_normal(STREAM) + shift
            martingale = ConformalMartingale.from_reference(
                SCORES[kind](generator.standard_normal(REFERENCE)), seed=repetition
            )
            for score in SCORES[kind](stream).tolist():
                martingale.update(score)
            maxima.append(martingale.highest)
    rows = []
    for level in ALARM_LEVELS:
        row: dict[str, object] = {"scores": kind, "alpha": level}
        for shift, maxima in highest.items():
            name = f"alarms after a shift of {shift:g} sd" if shift else "false alarms"
            row[name] = rate_text(rate_interval(sum(h >= -math.log(level) for h in maxima), repetitions))
        rows.append(row)
    return rows
