"""figures.py and figure_style.py: the drawn data are the given data, and nothing small, empty or odd breaks them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from other_process import run_python

from pyro_smat.episodes.readers.glyphs import glyph_pool
from pyro_smat.plotting.style import PALETTE, THEME, _spread, inline_svg, stroke
from pyro_smat.report import figures
from pyro_smat.report.training_figure import training_curves

ODD_NAMES = ("<b>", "a$b$ & c", "🦊 渋谷", "")


def _texts(figure: Figure) -> list[str]:
    """What a reader sees, from the drawn SVG."""
    root = ElementTree.fromstring(inline_svg(figure, "f", "a figure"))
    return ["".join(node.itertext()).strip() for node in root.iter("text")]


def test_risk_coverage_draws_the_curves_and_names_them() -> None:
    coverage, risk = np.arange(1, 4001) / 4000, np.linspace(0.1, 0.4, 4000)
    figure = figures.risk_coverage_figure({"entropy": (coverage, risk), "max": (coverage, risk * 2)})
    lines = figure.axes[0].lines
    for line, factor in zip(lines[:2], (1, 2), strict=True):
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        assert 300 < len(x) <= 400
        np.testing.assert_allclose(y, np.interp(x, coverage, risk) * factor)
        assert (x[-1], y[-1]) == (1, pytest.approx(0.4 * factor))
    assert {"entropy", "max"} <= set(_texts(figure))
    assert figure.axes[0].get_ylim()[1] >= 0.8


def test_reliability_draws_the_curves() -> None:
    curve = ([0.3, 0.5, 0.9], [0.2, 0.4, 0.7], [30, 29, 40])
    figure = figures.reliability_figure({"router": curve, "nothing": ([], [], [])})
    drawn = [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].lines]
    assert [[0.3, 0.2], [0.9, 0.7]] in drawn
    sizes = figure.axes[0].collections[0].get_sizes()  # type: ignore[attr-defined]
    assert sizes[2] > sizes[0]
    filled = [colour[3] > 0 for colour in figure.axes[0].collections[0].get_facecolor()]  # type: ignore[attr-defined]
    assert filled == [True, False, True]  # too few answers: an open dot, and off the line
    assert "router" in _texts(figure)
    assert "nothing" not in _texts(figure)


def test_heatmap_prints_every_weight_and_name() -> None:
    weights = np.array([[0.7, 0.3], [0.125, 0.875], [math.nan, math.nan]])
    texts = _texts(figures.routing_heatmap(weights, ["letter", "face", "style"], ["A", "B"]))
    for text in ("0.70", "0.30", "0.12", "0.88", "letter", "face", "style", "A", "B"):
        assert text in texts
    assert texts.count("–") == 2
    with pytest.raises(ValueError, match=r"shape \(3, 2\); expected \(2, 2\)"):
        figures.routing_heatmap(weights, ["a", "b"], ["A", "B"])


def test_histograms_hold_every_task_and_print_medians() -> None:
    generator = np.random.default_rng(0)
    groups = {"clean": generator.random(90), "noisy": generator.random(40) + 0.5, "none": np.zeros(0)}
    figure = figures.entropy_histogram(groups)
    for axes, name in zip(figure.axes[:2], ("clean", "noisy"), strict=True):
        heights = axes.patches[0].get_data().values  # type: ignore[attr-defined]
        assert heights.sum() == pytest.approx(1)
        assert f"median {np.median(groups[name]):.2f}" in _texts(figure)
    assert "no tasks" in _texts(figure)


def test_training_curves_show_what_was_recorded() -> None:
    steps = np.arange(300)
    loss = np.linspace(2, 1, 300)
    loss[5] = 1e6  # one spike must not flatten the rest
    history = pd.DataFrame({"step": steps, "loss": loss, "empty": np.nan})
    history["validation_accuracy"] = np.where(steps % 100 == 99, steps / 400, np.nan)
    figure = training_curves(history)
    texts = _texts(figure)
    assert {"Loss", "Validation accuracy"} <= set(texts)
    assert "Empty" not in texts
    assert f"{299 / 400:.3g}" in texts
    assert figure.axes[0].get_ylim()[1] < 10
    sparse = figure.axes[1].lines[0]
    np.testing.assert_allclose(np.asarray(sparse.get_xydata()), [[99, 99 / 400], [199, 199 / 400], [299, 299 / 400]])
    with pytest.raises(ValueError, match="expected 'step'"):
        training_curves(pd.DataFrame({"loss": [1.0]}))


def test_accuracy_dots_draw_values_and_intervals() -> None:
    figure = figures.accuracy_dots(
        {"clean": {"ours": (70, 68, 72), "point": (60, math.nan, math.nan)}, "noisy": {"ours": (50, 49, 51)}}
    )
    drawn = [np.asarray(line.get_xdata()).tolist() for axes in figure.axes for line in axes.lines]
    assert [68, 72] in drawn
    assert [70] in drawn
    assert [60] in drawn
    assert {"clean", "noisy", "ours", "point"} <= set(_texts(figure))


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.risk_coverage_figure({}),
        lambda: figures.risk_coverage_figure({"none": ([], []), "one": ([1.0], [0.2])}),
        lambda: figures.risk_coverage_figure({"no risk": ([0.5, 1.0], [0.0, 0.0])}),
        lambda: figures.reliability_figure({}),
        lambda: figures.reliability_figure({"one": ([0.5], [1.0], [1])}),
        lambda: figures.routing_heatmap(np.zeros((0, 3)), [], ["a", "b", "c"]),
        lambda: figures.routing_heatmap([[1.0]], ["only"], ["source"]),
        lambda: figures.routing_heatmap(
            np.full((2, 9), 1 / 9), ["a", "b"], [f"a long source name {i}" for i in range(9)]
        ),
        lambda: figures.entropy_histogram({}),
        lambda: figures.entropy_histogram({"none": [], "one": [0.0]}),
        lambda: figures.entropy_histogram({"none": []}),
        lambda: training_curves(pd.DataFrame({"step": []})),
        lambda: training_curves(pd.DataFrame({"step": [0], "loss": [1.0]})),
        lambda: training_curves(pd.DataFrame({"step": range(80), "loss": [3.0] * 80})),
        lambda: training_curves(pd.DataFrame({"step": range(80), "loss": [math.inf] * 80})),
        lambda: figures.accuracy_dots({}),
        lambda: figures.accuracy_dots({"clean": {}}),
    ],
)
def test_small_and_empty_input_still_makes_a_figure(figure) -> None:  # type: ignore[no-untyped-def]
    assert _texts(figure())  # warnings are errors here, so nothing complains either


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    one = np.ones(1)
    drawings = [
        figures.risk_coverage_figure({name: (one, one)}),
        figures.reliability_figure({name: (one, one, one)}),
        figures.routing_heatmap([[1.0]], [name], [name]),
        figures.entropy_histogram({name: one}),
        training_curves(pd.DataFrame({"step": [0], name: [1.0]})),
        figures.accuracy_dots({name: {name: (1, 0, 2)}}),
    ]
    for index, drawing in enumerate(drawings):
        texts = _texts(drawing)
        assert name in texts or name.capitalize() in texts or name == "", f"drawing {index} shows {texts}"


def test_inline_svg_belongs_to_the_page() -> None:
    svg, again = (
        inline_svg(figures.routing_heatmap([[0.2, 0.8]], ["a"], ["b", "c"]), "heat", "weights") for _ in range(2)
    )
    assert svg == again  # no date, no random id
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "weights"
    assert "http" not in svg
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert not any(colour in svg for colour in THEME)
    assert "var(--ink)" in svg
    identities = re.findall(r'\bid="([^"]*)"', svg)
    assert len(set(identities)) == len(identities)
    assert all(identity.startswith("heat-") for identity in identities)
    for target in re.findall(r'(?:href="#|url\(#)([^")]*)', svg):
        assert target in identities


def test_no_two_of_eighteen_lines_look_alike() -> None:
    assert len({str(stroke(index)) for index in range(3 * len(PALETTE))}) == 18


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_key_entries_keep_their_order_and_distance(places: Sequence[float]) -> None:
    moved = _spread(np.array(places), gap=0.1)
    ranked = moved[np.argsort(places, kind="stable")]
    assert (np.diff(ranked) >= 0.1 - 1e-9).all()
    assert moved.max() <= 1 + 1e-9
    assert moved.min() >= -1e-9
    if len(places) == 1:
        assert moved[0] == places[0]


def test_neither_pyplot_nor_what_takes_a_second_to_load_is_loaded() -> None:
    """Training, evaluation and reports need none of it, and training on images that are drawn no figures at all."""
    program = """
import sys
import pyro_smat.inference.runs.train
from pyro_smat import glyph_pool
from pyro_smat.inference.assembly.config import build_config
build_config({"decision": {"rule": "mean"}, "model": "routed"})  # reads the rooms that it names
glyph_pool("validation")
print([name for name in ("matplotlib", "scipy.stats", "sklearn", "arviz") if name in sys.modules])
import pyro_smat.report.figures, pyro_smat.report.page
print([name for name in ("matplotlib.pyplot", "scipy.stats", "sklearn", "arviz") if name in sys.modules])
"""
    glyph_pool("validation")
    assert run_python("-c", program).split() == ["[]", "[]"]
