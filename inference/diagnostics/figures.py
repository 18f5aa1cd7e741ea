"""Figures of the diagnostics: plain results in, a :class:`Picture` with a caption that says what good looks like.

No pyplot and no ArviZ: these are drawn in the style of the report. ArviZ's own plots run on the DataTree.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from pyro_smat.inference.diagnostics.calibration import PosteriorCalibration
from pyro_smat.inference.diagnostics.concentration import Concentration
from pyro_smat.inference.diagnostics.prior_swap import PriorPath
from pyro_smat.inference.diagnostics.reliability import ReliabilityFit
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.plotting.style import FAINT, INK, MUTED, PALETTE, SMALL, new_figure, ordered_key, stroke, style_axes

MOST_LINES = 6
MOST_EPISODES = 12


@dataclass(frozen=True)
class Picture:
    """A figure and what to see in it; shows itself in notebooks."""

    figure: Figure
    caption: str

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        return buffer.getvalue()


def pit_picture(found: PosteriorCalibration) -> Picture:
    """ECDF of the PIT values minus the uniform one, of the quantities with the smallest p-values."""
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    style_axes(axes, x_label="PIT value", y_label="ECDF minus uniform")
    n = found.num_episodes
    band = 1.358 / np.sqrt(n)  # Kolmogorov's 95 %
    axes.axhspan(-band, band, color=FAINT, linewidth=0)
    names = sorted(found.pits, key=lambda name: found.p_values[name])[:MOST_LINES]
    middles = []
    for index, name in enumerate(names):
        u = np.sort(found.pits[name])
        difference = (np.arange(n) + 1) / n - u
        axes.plot(u, difference, linewidth=1.3, **stroke(index))
        middles.append(float(difference[-max(1, n // 20)]))
    axes.set_xlim(0, 1)
    ordered_key(axes, [f"{name} (p {found.p_values[name]:.2g})" for name in names], middles)
    return Picture(
        figure,
        f"PIT values of {found.population}, judged by the {found.reference}. Good: every line stays in the grey band. "
        "An S that rises first and falls later is a posterior that is too sharp, the reverse one that is too flat; "
        "all on one side is a bias. The band is that of one line; the p-values are of a sharper test.",
    )


def reliability_picture(found: Mapping[str, ReliabilityFit]) -> Picture:
    """Isotonic reliability of all routings pooled, with its consistency band."""
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Probability that was said", y_label="Frequency of being true", grid="both")
    pooled = found["all routings"]
    axes.fill_between(pooled.grid, pooled.low, pooled.high, color=FAINT, linewidth=0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    names = list(found)[:MOST_LINES]
    for index, name in enumerate(names):
        fit = found[name]
        axes.plot(fit.said, fit.happened, linewidth=1.8 if index == 0 else 1.0, **stroke(index))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    ordered_key(axes, names, [float(found[name].happened[-1]) for name in names])
    return Picture(
        figure,
        f"How often a routing was true against the probability it was given, {pooled.episodes} episodes, isotonic fit "
        "without bins. Good: the thick line lies in the grey band (90 %, what chance does to a calibrated posterior). "
        f"Miscalibration {pooled.miscalibration:.4f}, discrimination {pooled.discrimination:.4f} of the Brier score.",
    )


def concentration_picture(found: Concentration) -> Picture:
    """Doubt, error and admitted error over shots, beside the rates of theory."""
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Shots of every class")
    gap = 0.04 * (found.shots[-1] - found.shots[0])
    apart = [n for n, before in zip(found.shots, [-np.inf, *found.shots], strict=False) if n - before > gap]
    axes.set_xticks(apart)
    lines: dict[str, FloatArray] = {}
    if found.doubt is not None and np.isfinite(found.doubt).any():
        axes.set_yscale("log")
        axes.set_ylabel("Probability", color=INK)
        lines["1 - q(true)"] = np.nanmean(found.doubt, axis=1)
        if found.error is not None and found.admitted is not None:
            lines["wrong"] = np.clip(found.error, 0.5 / found.doubt.shape[1], None)
            lines["says it is wrong"] = np.clip(found.admitted, 1e-6, None)
        start = lines["1 - q(true)"][0]
        for name, rate in (("Chernoff rate", found.chernoff), ("Bhattacharyya rate", found.bhattacharyya)):
            if np.isfinite(rate):
                lines[name] = start * np.exp(-rate * (found.shots - found.shots[0]))
    else:
        axes.set_ylabel("Contraction", color=INK)
        lines["contraction"] = found.contraction.mean(1)
    for index, values in enumerate(lines.values()):
        marker = "o" if index < 3 else ""
        axes.plot(found.shots, values, linewidth=1.6, marker=marker, markersize=3, **stroke(index))
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    ends = [float(values[-1]) for values in lines.values()]
    if axes.get_yscale() == "log":  # places of names are shares of the axis
        share = (np.log(ends) - np.log(low)) / (np.log(high) - np.log(low))
        ends = (low + np.clip(share, 0, 1) * (high - low)).tolist()
    ordered_key(axes, list(lines), ends)
    return Picture(
        figure,
        f"Nested supports of {found.contraction.shape[1]} episodes. Good: all lines fall with more shots, and being "
        "wrong is no more frequent than the posterior says. A line that levels off is at the floor that the weight of "
        "the KL and the corruptions of training set. Rates of theory are slopes for many shots, of the hardest pair.",
    )


def prior_path_picture(path: PriorPath) -> Picture:
    """Loss against cost along cost-aware priors."""
    figure = new_figure(2.7)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Expected cost of a task", y_label="Loss, nats per query", grid="both")
    kept = np.isfinite(path.loss)
    axes.errorbar(
        path.cost[kept], path.loss[kept], yerr=1.96 * path.loss_se[kept], color=PALETTE[0], linewidth=1.4, marker="o",
        markersize=3.5, elinewidth=0.8,
    )  # fmt: skip
    width, said = np.ptp(path.cost[kept]) if kept.any() else 0.0, np.inf
    for beta, cost, loss in zip(path.betas[kept], path.cost[kept], path.loss[kept], strict=True):
        if abs(cost - said) < 0.04 * width:
            continue  # no room for another number
        said = cost
        axes.annotate(f"{beta:g}", (cost, loss), xytext=(3, 4), textcoords="offset points", fontsize=SMALL, color=INK)
    refused = f" {int((path.refused > 0).sum())} of them leave out episodes that weights cannot reach." if (
        path.refused > 0
    ).any() else ""  # fmt: skip
    return Picture(
        figure,
        "What a cost-aware prior would pay and lose without retraining; the numbers are beta. Good: the loss stays "
        "flat while cost falls, then turns up: stop at the turn, and retrain there, for a swap is no better than the "
        f"posterior it starts from.{refused}",
    )


def weights_picture(weights: FloatArray, names: Sequence[str]) -> Picture:
    """Posterior weights of the sources of a few episodes, as intervals.

    Args:
        weights: ``(K, B, R)`` draws.
        names: of the R sources.
    """
    episodes = min(MOST_EPISODES, weights.shape[1])
    figure = new_figure(0.5 + 0.26 * episodes)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Weight of a source: 90 % interval and mean", grid="x")
    for r in range(weights.shape[2]):
        offset = 0.7 * (r - (weights.shape[2] - 1) / 2) / max(1, weights.shape[2])
        rows = np.arange(episodes) + offset
        low, high = np.quantile(weights[:, :episodes, r], (0.05, 0.95), axis=0)
        line = stroke(r)
        axes.hlines(rows, low, high, linewidth=1.4, **line)
        axes.plot(weights[:, :episodes, r].mean(0), rows, "o", markersize=3, color=line["color"])
    axes.set_yticks(np.arange(episodes), [f"episode {b}" for b in range(episodes)])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    ordered_key(axes, names, np.linspace(0, episodes - 1, len(names)).tolist())
    return Picture(
        figure,
        "What the posterior says of the sources in the first episodes. Good: intervals that differ between episodes "
        "and are wide where the support is small or noisy; the same everywhere is a posterior that says what the prior "
        "says.",
    )


def probabilities_picture(probabilities: FloatArray, names: Sequence[str]) -> Picture:
    """Probabilities ``(B, R)`` of the sources of a few episodes, as stacked bars: for a catalog of routings."""
    episodes = min(MOST_EPISODES, len(probabilities))
    figure = new_figure(0.5 + 0.22 * episodes)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Probability of a source", grid="x")
    left = np.zeros(episodes)
    for r in range(len(names)):
        part = probabilities[:episodes, r]
        axes.barh(np.arange(episodes), part, left=left, height=0.7, color=stroke(r)["color"], linewidth=0)
        left = left + part
    axes.set_yticks(np.arange(episodes), [f"episode {b}" for b in range(episodes)])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    ordered_key(axes, names, np.linspace(0, episodes - 1, len(names)).tolist())
    return Picture(
        figure,
        "What the posterior says of the sources in the first episodes. Good: bars that differ between episodes and are "
        "divided where the support is small or noisy; the same everywhere is a posterior that says what the prior "
        "says.",
    )


def khat_picture(khat: FloatArray, threshold: float) -> Picture:
    """k-hat of every episode, sorted."""
    figure = new_figure(2.3)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Episodes, sorted", y_label="k-hat")
    shown = np.sort(np.clip(khat, -1.0, 2.0))
    axes.plot(np.arange(len(shown)), shown, ".", markersize=3, color=PALETTE[0])
    axes.axhline(threshold, color=PALETTE[1], linewidth=1)
    return Picture(
        figure,
        f"Pareto k-hat of every episode (never of their sum). Good: below the line at {threshold:.2f}. It does not "
        "see a guide that is a little too narrow. Values are cut at -1 and 2.",
    )


def set_size_picture(sizes: np.ndarray, coverage: float, routings: int) -> Picture:
    """How many routings the conformal sets hold."""
    figure = new_figure(2.1)
    axes = figure.add_subplot()
    style_axes(axes, x_label="Routings in the set", y_label="Episodes")
    counts = np.bincount(sizes, minlength=routings + 1)[1:]
    axes.bar(np.arange(1, len(counts) + 1), counts, width=0.7, color=PALETTE[0])
    axes.set_xticks(np.arange(1, len(counts) + 1))
    return Picture(
        figure,
        f"Sets of routings that hold the true one with probability {100 * coverage:g}%, whether or not the posterior "
        "is calibrated. Good: mostly one routing, more where the support is ambiguous.",
    )
