"""Intervals of an explanation say something, or are not there."""

from __future__ import annotations

import pytest

from pyro_smat.inference.deployment.explanation import Component, Explanation


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (Component("a", 0.6, 0.25, 0.9, 8), "a   0.60  [0.25, 0.90]  ############"),
        (Component("a", 1.0, 1.0, 1.0, 8), "a   1.00                ####################"),
        (Component("a", 0.0304, 0.0, 0.0, 8), "a   0.03  mostly 0.00   #"),
        (Component("a", 0.3, 0.5, 0.75, 8), "a   0.30  mostly 0.50 to 0.75  ######"),
    ],
)
def test_intervals(part: Component, line: str) -> None:
    told = str(Explanation((part,), "score", 0.1, 0.5, False, "mean", 1, 8))
    assert told.splitlines()[0] == line
    assert "[0.00, 0.00]" not in told
