"""Thresholds of abstention by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_smat.inference.decision.thresholds import coverage_threshold, least_loss_threshold

unsure = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(unsure, st.sampled_from([0.2, 0.5, 1.0]))
def test_thresholds_by_brute_force(rows: list[tuple[int, int, int]], coverage: float) -> None:
    u, ours, theirs = np.array(rows, dtype=float).T
    smallest = min(t for t in u if (u <= t).mean() >= coverage - 1e-12)
    assert coverage_threshold(u, coverage) == smallest

    def whole(threshold: float) -> float:
        return sum(a if v <= threshold else b for v, a, b in zip(u, ours, theirs, strict=True)) / len(u)

    found = least_loss_threshold(u, ours, theirs, coverage)
    allowed = [t for t in (*u, math.inf) if (u <= t).mean() >= coverage - 1e-12]
    assert whole(found) == pytest.approx(min(whole(t) for t in allowed))
    assert (u <= found).mean() >= coverage - 1e-12
    if min(whole(t) for t in allowed) == whole(math.inf):
        assert found == math.inf  # where abstaining saves nothing, it does not happen


def test_infinite_scores_and_bad_coverage() -> None:
    assert coverage_threshold([0.0, math.inf, 1.0, math.inf], 0.5) == 1
    assert coverage_threshold([0.0, math.inf, 1.0, math.inf], 0.75) == math.inf
    with pytest.raises(ValueError, match="coverage is 0"):
        coverage_threshold([1.0], 0)
