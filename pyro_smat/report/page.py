"""The HTML report of a run: plain numbers and figures in, one self-contained file out.

It knows nothing of torch or of training: whoever evaluates fills the dataclasses below, and :func:`write_report` makes
a page that needs no network, reads in light and dark, on a phone and on paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pyro_smat.files import write_atomically
from pyro_smat.plotting.style import inline_svg
from pyro_smat.report.example import Example

_ONE_LINE = 84  # characters of a row that fit beside its name; wider rows put the interval below the number


@dataclass(frozen=True)
class Cell:
    """One number of a table, in the table's unit, with its interval.

    Attributes:
        value: shown as it is given (73.6 for 73.6%); NaN shows as a dash.
        low, high: ends of the interval, or None (or NaN) where there is none.
        text: shown instead of the number.
    """

    value: float
    low: float | None = None
    high: float | None = None
    text: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends where both are finite, else None."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Table:
    """Methods in rows, conditions in columns, one quantity throughout.

    Attributes:
        title: what the numbers are, e.g. "Accuracy".
        note: one sentence on how to read it.
        columns: names of the conditions.
        rows: (name, one cell or None per column).
        higher_is_better: decides which value of a column is bold.
        unit: e.g. "%" or "nats"; empty for none.
        references: names of rows that are no competitors (an oracle): greyed, last, never bold.
        digits: decimals shown; None chooses 1 for "%" and else 3.

    Raises:
        ValueError: when a row has not one cell per column, or a row or column name comes twice.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    higher_is_better: bool
    unit: str = ""
    references: tuple[str, ...] = ()
    digits: int | None = None

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                raise ValueError(
                    f"row {name!r} of table {self.title!r} has {len(cells)} cells; expected {len(self.columns)}, "
                    f"one per column {list(self.columns)} (None where there is no number)"
                )
        for what, names in (("row", [name for name, _ in self.rows]), ("column", list(self.columns))):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"table {self.title!r} has {what} {twice[0]!r} more than once; names must differ")

    @property
    def decimals(self) -> int:
        """How many decimals are shown."""
        return self.digits if self.digits is not None else 1 if self.unit == "%" else 3

    def show(self, value: float) -> str:
        """``value`` as the table prints it; a dash when it is not finite."""
        if not math.isfinite(value):
            return "–"
        return f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"  # + 0.0: no "-0.0"

    def cell(self, cell: Cell | None) -> str:
        """What stands in a cell."""
        return "–" if cell is None else cell.text or self.show(cell.value)

    def best(self, column: int) -> frozenset[str]:
        """Rows with the best printed value of a column, references aside; none where fewer than two compete."""
        values = {
            name: float(self.show(cell.value))
            for name, cells in self.rows
            if name not in self.references and (cell := cells[column]) is not None and math.isfinite(cell.value)
        }
        if len(values) < 2:
            return frozenset()
        winner = max(values.values()) if self.higher_is_better else min(values.values())
        return frozenset(name for name, value in values.items() if value == winner)


@dataclass(frozen=True)
class Words:
    """A table of words: a section of its own above the numbers.

    Attributes:
        title: of the section.
        note: one sentence on how to read it.
        columns: names.
        rows: one string per column; the first names the row.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Losses:
    """What it lost, a sentence a column.

    Attributes:
        significant: the paired interval of the difference excludes 0.
        close: it does not, or there is none.
    """

    significant: tuple[str, ...] = ()
    close: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page, top to bottom.

    Attributes:
        title: e.g. "Routing over four glyph sources".
        subtitle: one line: which run, which data.
        summary: headline sentences, the most important first.
        tables: as they should appear.
        words: tables of words, as they should appear.
        losses: plain sentences on what it lost; :func:`losing_sentences` makes them. None: nothing competes here.
        examples: tasks with their images, above everything else.
        figures: (caption, figure); the first sentence of a caption is its title. The first one sums up, and stands
            above the tables.
        settings: name -> value, for the table at the end.
        command: what makes this report again.
    """

    title: str
    subtitle: str
    summary: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[str, Figure], ...] = ()
    losses: Losses | None = Losses()
    examples: tuple[Example, ...] = ()
    words: tuple[Words, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


Paired = Callable[[str, str, str], tuple[float, float] | None]  # title, column, row -> interval of what it is ahead


def losing_sentences(tables: Sequence[Table], name: str, paired: Paired | None = None) -> Losses:
    """One sentence for every column in which a competitor prints a better number than row ``name``.

    Rows in ``Table.references`` are no competitors. The sentence names the best competitor, and the interval of the
    paired difference, which decides by itself whether the loss is significant: two intervals that overlap say nothing
    about a difference on the same episodes.

    Args:
        tables: of the report; those without the row are passed over.
        name: the row that is ours.
        paired: interval of how far a competitor is ahead on the same episodes, in the unit of the table, by title,
            column and row; None where there is none.
    """
    significant: list[str] = []
    close: list[str] = []
    for table in tables:
        rows = dict(table.rows)
        if name not in rows:
            continue
        for index, column in enumerate(table.columns):
            ours, best = rows[name][index], sorted(table.best(index))
            if ours is None or not math.isfinite(ours.value) or not best or name in best:
                continue
            theirs = rows[best[0]][index]
            assert theirs is not None  # best() holds rows with a finite number only
            unit = table.unit if table.unit in ("", "%") else f" {table.unit}"
            gap = abs(float(table.show(theirs.value)) - float(table.show(ours.value)))
            difference = f"{gap:.{table.decimals}f} {'points' if table.unit == '%' else table.unit}".strip()
            interval = None if paired is None else paired(table.title, column, best[0])
            certain = interval is not None and interval[0] > 0
            sure = (
                "" if interval is None else f", paired interval {table.show(interval[0])} to {table.show(interval[1])}"
            )
            sentence = (
                f"{table.title} ({column}): {best[0]} is better, {table.show(theirs.value)}{unit} against "
                f"{table.show(ours.value)}{unit} ({difference}{sure})."
            )
            (significant if certain else close).append(sentence)
    return Losses(tuple(significant), tuple(close))


def write_report(report: Report, path: Path) -> Path:
    """Write the page; a reader never sees half of it.

    Args:
        report: what to show.
        path: of the .html file; folders above it are made.

    Returns:
        ``path``.

    Raises:
        ValueError: when the file cannot be written there.
    """
    write_atomically(path, render_report(report).encode())
    return path


def render_report(report: Report) -> str:
    """The page as a string: all names escaped, styles and figures inline, nothing fetched from anywhere."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files("pyro_smat.report") / "report.html").read_text(encoding="utf-8"))
    figures = []
    for number, (caption, figure) in enumerate(report.figures, 1):
        headline, _, rest = caption.partition(". ")
        svg = Markup(inline_svg(figure, f"figure{number}", html.escape(caption)))
        figures.append({"headline": headline.rstrip(".") + ".", "rest": rest, "svg": svg})
    tables = [_view(table) for table in report.tables]
    return template.render(report=report, tables=tables, figures=figures)


def _view(table: Table) -> dict[str, object]:
    """The strings of a table, cell by cell."""
    best = [table.best(index) for index in range(len(table.columns))]
    competitors = [row for row in table.rows if row[0] not in table.references]
    ordered = competitors + [row for row in table.rows if row[0] in table.references]
    rows = [
        {
            "name": name,
            "reference": name in table.references,
            "first_reference": index == len(competitors) and index > 0,
            "cells": [
                {
                    "value": table.cell(cell),
                    "interval": "" if cell is None else _interval(table, cell),
                    "best": name in best[column],
                }
                for column, cell in enumerate(cells)
            ],
        }
        for index, (name, cells) in enumerate(ordered)
    ]
    longest = max((len(_interval(table, cell)) for _, row in table.rows for cell in row if cell is not None), default=0)
    widest = max((len(table.cell(cell)) for _, row in table.rows for cell in row), default=0)
    direction = "higher is better" if table.higher_is_better else "lower is better"
    if not competitors:
        direction = ""
    return {
        "title": table.title,
        "note": table.note,
        "columns": table.columns,
        "rows": rows,
        "interval_width": longest,
        "stacked": longest > 0 and len(table.columns) * (longest + widest + 4) > _ONE_LINE,
        "unit": ", ".join(part for part in (table.unit, direction) if part),
    }


def _interval(table: Table, cell: Cell) -> str:
    if cell.interval is None:
        return ""
    low, high = cell.interval
    negative = any(other.interval[0] < 0 for _, row in table.rows for other in row if other and other.interval)
    return f"{table.show(low)}{' to ' if negative else '–'}{table.show(high)}"
