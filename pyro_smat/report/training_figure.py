"""The figure of a training history: small multiples, every quantity against the step."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_smat.plotting.style import FAINT, INK, MOST_POINTS, MUTED, PALETTE, SMALL, blank, new_figure, say
from pyro_smat.plotting.style import style_axes as style

_NAMES = {
    "loss": "Loss",
    "cvar": "Tail loss (CVaR)",
    "kl": "KL to the prior (nats)",
    "sparsity": "Expert sparsity",
    "validation_accuracy": "Validation accuracy",
}


def training_curves(history: pd.DataFrame) -> Figure:
    """Small multiples of the training history: every column against the step, with its last value.

    Args:
        history: a column ``step`` and one column per quantity; rows where a quantity is missing are skipped, so that
            validation may be sparser than training. Columns without any number are left out.

    Raises:
        ValueError: when there is no column ``step``.
    """
    if "step" not in history.columns:
        raise ValueError(f"history has columns {list(history.columns)}; expected 'step' and the quantities over it")
    columns = [name for name in history.columns if name != "step" and history[name].notna().any()]
    height = max(1, math.ceil(len(columns) / 2))
    figure = new_figure(0.3 + 1.35 * height)
    if not columns:
        say(blank(figure), "no steps recorded")
        return figure
    grid = figure.subplots(height, 2, sharex=True, squeeze=False).flatten()
    for index, (axes, name) in enumerate(zip(grid, columns, strict=False)):
        rows = history[["step", name]].dropna()
        style(axes, x_label="Step" if index // 2 == height - 1 else "")
        axes.tick_params(labelbottom=index + 2 >= len(columns))
        axes.locator_params(nbins=4)
        _trace(axes, rows["step"].to_numpy(float), rows[name].to_numpy(float))
        title = _NAMES.get(name, str(name).replace("_", " ").capitalize())
        axes.set_title(title, fontsize=SMALL, color=INK, loc="left", parse_math=False)
        axes.set_title(f"{rows[name].iloc[-1]:.3g}", fontsize=SMALL, color=MUTED, loc="right")
    for axes in grid[len(columns) :]:
        axes.set_axis_off()
    return figure


def _trace(axes: Axes, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> None:
    """The raw line, faint where a running median of a dense series is drawn over it."""
    keep = np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).astype(int))
    if len(steps) <= 50:
        axes.plot(steps, values, color=PALETTE[0], linewidth=1.4, marker="o", markersize=2.5)
        return
    window = max(5, len(steps) // 25)
    smooth = pd.Series(values).rolling(window, center=True, min_periods=1).median().to_numpy()
    axes.plot(steps[keep], values[keep], color=FAINT, linewidth=0.8)
    axes.plot(steps[keep], smooth[keep], color=PALETTE[0], linewidth=1.5)
    if np.isfinite(values).any():
        axes.set_ylim(*_settled_range(values))


def _settled_range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Limits that hold all but the highest and lowest hundredth, so that one spike does not flatten the curve."""
    low, high = np.nanquantile(values[np.isfinite(values)], (0.01, 0.99))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)
