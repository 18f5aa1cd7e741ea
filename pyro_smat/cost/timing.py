"""Timing: median milliseconds of calls that take turns, and the line through times against counts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

SHORTEST = 2e-4  # seconds of one measurement: shorter calls are repeated within it
WARM_UP = 3  # untimed calls of each


@dataclass(frozen=True)
class Line:
    """A least-squares line y = intercept + slope x.

    Attributes:
        slope, intercept: of the line.
        r_squared: share of the variance of y that it explains; NaN for fewer than three points or a constant y.
        error: root mean square residual, in units of y.
    """

    slope: float
    intercept: float
    r_squared: float
    error: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line; through the origin for a single point.

    Raises:
        ValueError: for sequences that differ in length or are empty, or a single x of several points.
    """
    if len(x) != len(y) or not x or (len(x) > 1 and len(set(x)) == 1):
        raise ValueError(f"got {len(x)} x and {len(y)} y; expected as many of each, of different x")
    if len(x) == 1:
        return Line(y[0] / x[0], 0.0, math.nan, 0.0)
    slope, intercept = (float(c) for c in np.polyfit(x, y, 1))
    residuals = np.asarray(y) - (intercept + slope * np.asarray(x))
    total = float(np.square(np.asarray(y) - np.mean(y)).sum())
    explained = 1 - float(np.square(residuals).sum()) / total if len(x) > 2 and total > 0 else math.nan
    return Line(slope, intercept, explained, float(np.sqrt(np.square(residuals).mean())))


def median_times(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median milliseconds of every call.

    The calls take turns, so that a machine that slows down slows all of them.

    Args:
        calls: without arguments; what they return is dropped.
        device: is waited for, where it works by itself.
        repeats: measurements of every call, after a warm-up.

    Raises:
        ValueError: for fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected at least 1")

    def seconds(call: Callable[[], object], count: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        _wait(device)
        return (time.perf_counter() - start) / count

    counts = [max(1, math.ceil(SHORTEST / max(seconds(call, 1) for _ in range(WARM_UP)))) for call in calls]
    measured: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call, count in zip(measured, calls, counts, strict=True):
            times.append(1e3 * seconds(call, count))
    return [statistics.median(times) for times in measured]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
