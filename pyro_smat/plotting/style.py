"""How figures look: palette, axes, an ordered key, and how a figure becomes an SVG that follows the page's theme.

Figures are drawn in stand-in colours (ink, muted, faint, paper). On its way into a page an SVG gets CSS variables for
them and the page's own typeface, so one figure reads well in light, in dark and on paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_smat.metrics.arrays import FloatArray

INK, MUTED, FAINT, PAPER = "#1b1f25", "#667079", "#dfe2e7", "#fefdff"

# Okabe and Ito's colours, safe for colour-blind readers, without the yellow that vanishes on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    PALETTE[0]: "var(--blue)",  # too dark on a dark page
}

WIDTH = 4.6  # inches: at this width 9 point text is still legible on a phone
TEXT, SMALL = 9.0, 8.0
MOST_POINTS = 400  # of one line: more are not visible and make the file heavy


def stroke(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line; beyond the palette the colours come again, dashed, then dotted."""
    dashes = ("-", (0, (4, 1.5)), ":")
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": dashes[min(2, index // len(PALETTE))]}


def new_figure(height: float) -> Figure:
    """An empty figure of the report's width, ``height`` inches high, without background."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")


def style_axes(
    axes: Axes, *, x_label: str = "", y_label: str = "", grid: Literal["x", "y", "both", "none"] = "y"
) -> None:
    """Two thin spines, a faint grid along ``grid`` and labels in the report's colours."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.7)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, width=0.7, length=3)
    if grid != "none":
        axes.grid(axis=grid, color=FAINT, linewidth=0.7)
    axes.set_xlabel(x_label, color=INK, fontsize=TEXT)
    axes.set_ylabel(y_label, color=INK, fontsize=TEXT)


def ordered_key(axes: Axes, names: Sequence[str], heights: Sequence[float]) -> None:
    """Names in the right margin with a sample of each line, in the order of the lines and as near as room allows.

    Args:
        axes: with its final y limits; line i was drawn with ``stroke(i)``.
        names: one per line.
        heights: where each line ends, in data units.
    """
    low, high = axes.get_ylim()
    places = _spread((np.asarray(heights, dtype=np.float64) - low) / (high - low), gap=0.075)
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        axes.plot([1.03, 1.08], [place, place], transform=axes.transAxes, clip_on=False, linewidth=2, **stroke(index))
        axes.text(1.1, place, name, transform=axes.transAxes, va="center", color=INK, fontsize=SMALL, parse_math=False)


def say(axes: Axes, message: str) -> None:
    """Put ``message`` in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=TEXT)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as one ``<svg>`` element for an HTML page: theme colours, live text, no reference to anything outside.

    Args:
        figure: any matplotlib figure.
        name: prefix of every id in it, so that several figures can stand on one page.
        label: what a screen reader says; HTML-escaped by the caller.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, so glyphs that matplotlib's own font lacks are no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, facecolor=figure.get_facecolor())
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = re.match(r"(<svg[^>]*>)(.*)", svg, re.DOTALL).groups()  # type: ignore[union-attr]
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>\n?", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: (?:(\d{3}|bold|italic) )?([\d.]+px) [^;\"]*", _page_font, body)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)  # rotated text spells its font out
    for colour, variable in THEME.items():
        body = body.replace(colour, variable)
    return f'<svg {box.group(0)} role="img" aria-label="{label}">{body.strip()}'


def _page_font(match: re.Match[str]) -> str:
    weight, size = match.groups()
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight and weight != "italic" else "")


def _spread(places: FloatArray, gap: float) -> FloatArray:
    """Move ``places`` until neighbours are ``gap`` apart, keeping their order and staying in [0, 1] if they fit."""
    order = np.argsort(places, kind="stable")
    spread = places[order].copy()
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + gap)
    top = max(1.0, gap * (len(spread) - 1))
    for i in reversed(range(len(spread))):
        ceiling = top if i == len(spread) - 1 else spread[i + 1] - gap
        spread[i] = min(spread[i], ceiling)
    result = np.empty_like(spread)
    result[order] = spread
    return result


def blank(figure: Figure) -> Axes:
    """Axes without anything."""
    axes = figure.add_subplot()
    axes.set_axis_off()
    return axes
