"""The figures of the report, each a function from plain arrays to a ``matplotlib.figure.Figure``.

Nothing here opens a window or keeps global state (no pyplot): save a figure with ``figure.savefig(path)``, or hand it
to :func:`pyro_smat.report.page.write_report`. Missing or empty data make a figure that says so, never an error,
because a report must come out of every run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyro_smat.plotting.style import (
    INK,
    MOST_POINTS,
    MUTED,
    PALETTE,
    PAPER,
    SMALL,
    TEXT,
    blank,
    new_figure,
    ordered_key,
    say,
    stroke,
)
from pyro_smat.plotting.style import style_axes as style

FEW = 30  # answers of a bin
_HEAT = "#0071b1"  # the palette's blue, a shade off so that the page's theme leaves it alone


def risk_coverage_figure(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], risk_label: str = "Mean loss of the kept tasks"
) -> Figure:
    """Mean loss of the kept tasks against the fraction kept.

    Args:
        curves: name -> (coverage ``(n,)``, risk ``(n,)``), e.g. from
        :func:`pyro_smat.metrics.scoring.risk_coverage_curve`.
        risk_label: of the vertical axis.
    """
    figure = new_figure(3.1)
    axes = figure.add_subplot()
    style(axes, x_label="Coverage: fraction of tasks kept, surest first", y_label=risk_label)
    axes.set_xlim(0, 1)
    names: list[str] = []
    middles: list[float] = []
    top = 0.0
    for name, curve in curves.items():
        coverage, risk = (np.asarray(values, float) for values in curve)
        if len(coverage) == 0:
            continue
        keep = np.unique(np.linspace(0, len(coverage) - 1, MOST_POINTS).astype(int))
        marker = "o" if len(keep) == 1 else ""
        axes.plot(coverage[keep], risk[keep], linewidth=1.6, marker=marker, markersize=4, **stroke(len(names)))
        names.append(name)
        # Curves of one predictor meet at full coverage: the middle tells their order.
        middles.append(float(np.interp(0.6, coverage, risk)))
        top = max(top, float(risk[coverage >= 0.05].max(initial=0)))
    if not names:
        say(axes, "no tasks")
        return figure
    axes.set_ylim(0, top * 1.08 or 1)
    ordered_key(axes, names, middles)
    return figure


def reliability_figure(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]]) -> Figure:
    """Accuracy against confidence; the area of a dot grows with the number of answers behind it.

    A bin of fewer than 30 answers is an open dot off the line: its accuracy is mostly chance.

    Args:
        curves: name -> (confidence ``(b,)``, accuracy ``(b,)``, count ``(b,)``) of the filled bins, e.g. from
            :func:`pyro_smat.metrics.scoring.reliability_curve`.
    """
    figure = new_figure(3.3)
    axes = figure.add_subplot()
    style(axes, x_label="Confidence: probability of the answer", y_label="Accuracy", grid="both")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.annotate(
        "calibrated", (0.04, 0.04), (7, -1), textcoords="offset points", color=MUTED, fontsize=SMALL, va="center"
    )
    names: list[str] = []
    ends: list[float] = []
    for name, curve in curves.items():
        confidence, accuracy, count = (np.asarray(values, float) for values in curve)
        if len(confidence) == 0:
            continue
        line = stroke(len(names))
        many = count >= FEW
        axes.plot(confidence[many], accuracy[many], linewidth=1.4, **line)
        areas = 8 + 70 * count / count.max()
        shown = axes.scatter(confidence, accuracy, s=areas, linewidths=0.8, zorder=3)
        colour = to_rgba(line["color"])
        shown.set_facecolor([colour if m else "none" for m in many])
        shown.set_edgecolor([to_rgba(PAPER) if m else colour for m in many])
        names.append(name)
        ends.append(float(accuracy[-1]))
    if names:
        ordered_key(axes, names, ends)
    else:
        say(axes, "no predictions")
    return figure


def routing_heatmap(
    weights: npt.ArrayLike, row_names: Sequence[str], column_names: Sequence[str], row_label: str = "True attribute"
) -> Figure:
    """Mean routing weight on each source, by true attribute of the task; every cell says its number.

    Args:
        weights: ``(rows, columns)`` in [0, 1]; NaN where there were no tasks.
        row_names: the true attributes.
        column_names: the sources.
        row_label: what a row is.

    Raises:
        ValueError: when the shape does not fit the names.
    """
    grid = np.asarray(weights, float)
    if grid.shape != (len(row_names), len(column_names)):
        raise ValueError(
            f"weights have shape {grid.shape}; expected ({len(row_names)}, {len(column_names)}): "
            f"{len(row_names)} row names, {len(column_names)} column names"
        )
    figure = new_figure(0.9 + 0.42 * max(1, len(row_names)))
    axes = figure.add_subplot()
    style(axes, grid="none")
    if grid.size == 0:
        say(axes, "no tasks")
        return figure
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (row, column), weight in np.ndenumerate(grid):
        shade = 0.0 if math.isnan(weight) else min(1.0, max(0.0, weight))
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, edgecolor=PAPER, linewidth=2)
        # Opacity, not a colour map: a weight of 0 is the page itself, light or dark.
        cell.set_facecolor(to_rgba(_HEAT, 0.06 + 0.94 * shade))
        axes.add_patch(cell)
        text = "–" if math.isnan(weight) else f"{weight:.2f}"
        colour = "#ffffff" if shade > 0.85 else INK  # below, the page's ink has the better contrast in both themes
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=TEXT)
    axes.set(xlim=(-0.5, len(column_names) - 0.5), ylim=(len(row_names) - 0.5, -0.5))
    axes.xaxis.tick_top()
    slanted = max(map(len, column_names)) * len(column_names) > 44
    axes.set_xticks(
        range(len(column_names)),
        column_names,
        parse_math=False,
        rotation=30 if slanted else 0,
        ha="left" if slanted else "center",
    )
    axes.set_yticks(range(len(row_names)), row_names, parse_math=False)
    axes.tick_params(length=0)
    axes.set_ylabel(row_label, color=MUTED, fontsize=SMALL)
    axes.set_xlabel("Source", color=MUTED, fontsize=SMALL)
    axes.xaxis.set_label_position("top")
    return figure


def entropy_histogram(
    groups: Mapping[str, npt.ArrayLike], label: str = "Entropy of the routing posterior (nats)", bins: int = 30
) -> Figure:
    """One histogram per condition on a common axis, with its median: does the posterior widen when it should?

    Args:
        groups: condition -> ``(n,)`` one value per task; may be empty.
        label: of the horizontal axis.
        bins: over the common range.
    """
    values = {name: np.asarray(group, float) for name, group in groups.items()}
    figure = new_figure(0.7 + 0.62 * max(1, len(values)))
    pooled = np.concatenate([np.zeros(0), *values.values()])
    if len(pooled) == 0:
        say(blank(figure), "no tasks")
        return figure
    low, high = min(0.0, float(pooled.min())), float(pooled.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    rows = np.atleast_1d(figure.subplots(len(values), 1, sharex=True))
    for index, (axes, (name, group)) in enumerate(zip(rows, values.items(), strict=True)):
        last = index == len(values) - 1
        style(axes, x_label=label if last else "", grid="none")
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False, labelleft=False, bottom=last, labelbottom=last)
        axes.set_ylabel(
            name, rotation=0, ha="right", va="center", fontsize=SMALL, color=INK, labelpad=6, parse_math=False
        )
        if len(group) == 0:
            say(axes, "no tasks")
            continue
        colour = stroke(index)["color"]
        counts, _ = np.histogram(group, edges)
        axes.stairs(counts / len(group), edges, fill=True, color=colour, alpha=0.55, linewidth=0)
        median = float(np.median(group))
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.35)
        axes.plot([median, median], [0, top * 1.05], color=INK, linewidth=1.2)
        right_half = median > (edges[0] + edges[-1]) / 2
        axes.text(
            median,
            top * 1.35,
            f"median {median:.2f} " if right_half else f" median {median:.2f}",
            ha="right" if right_half else "left",
            va="top",
            color=INK,
            fontsize=SMALL,
        )
    rows[0].set_xlim(edges[0], edges[-1])
    return figure


def accuracy_dots(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]], label: str = "Accuracy (%)"
) -> Figure:
    """Value and interval of every method, one panel per condition with a common axis.

    Args:
        values: condition -> method -> (value, low, high); ends that are NaN draw the dot alone. The first method
            is drawn in colour, the others in grey.
        label: of the horizontal axis.
    """
    methods = list(dict.fromkeys(method for row in values.values() for method in row))
    figure = new_figure(0.5 + max(1, len(values)) * (0.3 + 0.17 * max(1, len(methods))))
    if not methods:
        say(blank(figure), "no results")
        return figure
    panels = np.atleast_1d(figure.subplots(len(values), 1, sharex=True))
    for index, (axes, (condition, row)) in enumerate(zip(panels, values.items(), strict=True)):
        last = index == len(values) - 1
        style(axes, x_label=label if last else "", grid="both")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", bottom=last, labelbottom=last)
        axes.set_title(condition, fontsize=SMALL, color=INK, loc="left", fontweight="bold", parse_math=False)
        for height, method in enumerate(methods):
            if method in row:
                value, low, high = row[method]
                colour = PALETTE[0] if height == 0 else MUTED
                axes.plot([low, high], [height, height], color=colour, linewidth=1.6, solid_capstyle="round")
                axes.plot([value], [height], "o", color=colour, markersize=4.5)
        axes.set_yticks(range(len(methods)), methods, parse_math=False)
        axes.set_ylim(len(methods) - 0.4, -0.6)
    return figure
