"""The front against its definition, pair by pair; the figure draws what the table says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_smat.cost import non_dominated
from pyro_smat.report.cost_figure import pareto_figure

SMALL_NUMBERS = st.integers(0, 4).map(float)  # ties on purpose


@given(st.lists(st.tuples(SMALL_NUMBERS, SMALL_NUMBERS), min_size=1, max_size=12))
def test_the_front_is_its_definition(points: list[tuple[float, float]]) -> None:
    def beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
        return other[0] <= point[0] and other[1] >= point[1] and other != point

    expected = [not any(beats(other, point) for other in points) for point in points]
    found = non_dominated([x for x, _ in points], [y for _, y in points])
    assert found.tolist() == expected


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        non_dominated([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="costs and values have 2 and 1 entries"):
        non_dominated([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one entry"):
        non_dominated([], [])


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "setting": ["all", "one", "a$b$ two", "worse"],
            "accuracy": [0.9, 0.7, 0.85, 0.6],
            "accuracy_low": [0.88, np.nan, 0.8, 0.5],
            "accuracy_high": [0.92, np.nan, 0.9, 0.7],
            "cost_ms": [5.0, 1.0, 2.0, 4.0],
            "latency_ms": [2.0, 2.5, 3.0, 4.0],
        }
    )


def test_the_figure_draws_every_setting_and_names_the_front() -> None:
    figure = pareto_figure(table(), {"cost_ms": "Cost (ms)", "latency_ms": "Latency (ms)"})
    figure.draw_without_rendering()
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel()) == ("Cost (ms)", "Latency (ms)")
    assert (first.get_xscale(), second.get_xscale()) == ("log", "linear")
    dots, steps, front = first.lines
    np.testing.assert_allclose(dots.get_xydata(), [[5, 90], [1, 70], [2, 85], [4, 60]])
    np.testing.assert_allclose(front.get_xydata(), [[1, 70], [2, 85], [5, 90]])
    np.testing.assert_allclose(steps.get_xydata(), front.get_xydata())
    assert [text.get_text() for text in first.texts] == ["one", "a$b$ two", "all"]
    assert [text.get_text() for text in second.texts] == ["all"]


def test_tables_without_what_is_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected settings with .*, cost_bytes"):
        pareto_figure(table(), {"cost_bytes": "Bytes"})
    for empty in (pareto_figure, lambda t, c: pareto_figure(t[:0], c)):
        with pytest.raises(ValueError, match="expected settings with"):
            empty(table(), {} if empty is pareto_figure else {"cost_ms": "Cost"})
