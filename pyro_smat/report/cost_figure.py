"""The figure of a sweep: accuracy against every cost, and the settings that nothing beats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from pyro_smat.cost.front import non_dominated
from pyro_smat.plotting.style import INK, MUTED, PALETTE, SMALL, new_figure, style_axes

WIDE = 4.0  # costs that span more than this factor are drawn on a logarithmic axis


def pareto_figure(table: pd.DataFrame, costs: Mapping[str, str]) -> Figure:
    """Accuracy against cost, one panel for each cost, with the front drawn and its settings named.

    Args:
        table: a row a setting, with columns ``setting``, ``accuracy``, ``accuracy_low``, ``accuracy_high`` (NaN ends
            draw the dot alone) in [0, 1], and those of ``costs``.
        costs: column -> label of the axis.

    Raises:
        ValueError: when a column is missing, or there is no setting.
    """
    needed = ["setting", "accuracy", "accuracy_low", "accuracy_high", *costs]
    missing = [name for name in needed if name not in table.columns]
    if missing or not len(table) or not costs:
        raise ValueError(
            f"the table has {len(table)} rows and columns {list(table.columns)}; expected settings with "
            f"{', '.join(needed)}"
        )
    figure = new_figure(0.4 + 2.7 * len(costs))
    value, low, high = (100 * table[name].to_numpy(float) for name in needed[1:4])
    for axes, (column, label) in zip(np.atleast_1d(figure.subplots(len(costs), 1)), costs.items(), strict=True):
        x = table[column].to_numpy(float)
        style_axes(axes, x_label=label, y_label="Accuracy (%)", grid="both")
        axes.margins(x=0.12, y=0.12)
        if x.min() > 0 and x.max() > WIDE * x.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_locator(NullLocator())
        front = np.flatnonzero(non_dominated(x, value))
        front = front[np.argsort(x[front], kind="stable")]
        axes.vlines(x, low, high, color=MUTED, linewidth=0.8, alpha=0.6)
        axes.plot(x, value, "o", color=MUTED, markersize=3.5)
        axes.step(x[front], value[front], where="post", color=PALETTE[0], linewidth=1.4)
        axes.plot(x[front], value[front], "o", color=PALETTE[0], markersize=5)
        for rank, i in enumerate(front):
            last = len(front) > 1 and rank == len(front) - 1
            axes.annotate(
                str(table["setting"].iloc[i]),
                (x[i], value[i]),
                (-4 if last else 4, 7 if rank % 2 == 0 else -12),
                textcoords="offset points",
                ha="right" if last else "left",
                color=INK,
                fontsize=SMALL,
                parse_math=False,
            )
    return figure
