"""report.py: one self-contained, valid, escaped page that holds every number, and says where we lose."""

from __future__ import annotations

import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pyro_smat.report.example import Example, ExampleClass, Picture
from pyro_smat.report.figures import accuracy_dots, routing_heatmap
from pyro_smat.report.page import Cell, Losses, Report, Table, losing_sentences, render_report, write_report

_VOID = {"meta", "link", "br", "img", "hr", "input"}


class _Page(HTMLParser):
    """Checks that tags nest, and collects text, ids, attributes and the cells of each table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open[-2:] == ["td", "b"]:
            self.bold.append(data)


def _accuracy(**changes: object) -> Table:
    fields = {
        "title": "Accuracy",
        "note": "Mean over 600 tasks.",
        "columns": ("clean", "noisy"),
        "rows": (
            ("oracle", (Cell(79.21, 78.1, 80.3), Cell(60.1))),
            ("ours", (Cell(73.61, 72.5, 74.7), Cell(50.3, 49.2, 51.4))),
            ("best source", (Cell(74.52, 73.4, 75.6), Cell(42.8, 41.7, 43.9))),
            ("uniform", (None, Cell(45.01, math.nan, math.nan))),
        ),
        "higher_is_better": True,
        "unit": "%",
        "references": ("oracle",),
    }
    return Table(**{**fields, **changes})  # type: ignore[arg-type]


_REGRET = Table(
    "Regret",
    "Lower is better.",
    ("clean",),
    (("ours", (Cell(-0.0351, -0.06, 0.01),)), ("point", (Cell(0.2),))),
    False,
    "nats",
)


def _report(**changes: object) -> Report:
    fields = {
        "title": "Routing",
        "subtitle": "seed 0",
        "summary": ("It works.", "Mostly."),
        "tables": (_accuracy(), _REGRET),
        "figures": (
            ("Routing weights. By true attribute.", routing_heatmap([[0.2, 0.8]], ["a"], ["b", "c"])),
            ("Accuracy", accuracy_dots({"clean": {"ours": (70, 69, 71)}})),
        ),
        "losses": losing_sentences((_accuracy(), _REGRET), "ours"),
        "settings": {"rho": "0.1"},
        "command": "pyro-smat quickstart --seed 0",
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


def test_page_holds_every_number_in_its_place() -> None:
    page = _Page(render_report(_report()))
    rows = {row[0]: [" ".join(cell.split()) for cell in row[1:]] for row in page.rows[:5]}
    assert rows[""] == ["clean", "noisy"]
    assert rows["ours"] == ["73.6 72.5–74.7", "50.3 49.2–51.4"]
    assert rows["best source"] == ["74.5 73.4–75.6", "42.8 41.7–43.9"]
    assert rows["uniform"] == ["–", "45.0"]
    assert rows["oracle"] == ["79.2 78.1–80.3", "60.1"]
    assert [row[0] for row in page.rows[1:5]] == ["ours", "best source", "uniform", "oracle"]  # references come last
    text = " ".join(page.text)
    for part in (
        "-0.035",
        "-0.060 to 0.010",
        "0.200",
        "It works.",
        "Mostly.",
        "rho",
        "pyro-smat quickstart --seed 0",
        "0.80",
    ):
        assert part in text


def test_best_competitor_is_bold() -> None:
    page = _Page(render_report(_report()))
    assert page.bold == ["50.3", "74.5", "-0.035"]
    tie = _accuracy(rows=(("a", (Cell(1.04), None)), ("b", (Cell(0.96), Cell(3.0))), ("c", (Cell(math.nan), None))))
    assert tie.best(0) == {"a", "b"}  # both print 1.0
    assert tie.best(1) == frozenset()  # nobody to beat


@pytest.mark.parametrize(
    ("unit", "digits", "value", "shown"),
    [("%", None, 73.649, "73.6"), ("nats", None, 1.2345678, "1.235"), ("", 0, 12.7, "13"), ("%", None, -0.01, "0.0")],
)
def test_numbers_have_the_decimals_of_their_table(unit: str, digits: int | None, value: float, shown: str) -> None:
    assert _accuracy(unit=unit, digits=digits).show(value) == shown
    assert _accuracy(unit=unit, digits=digits).show(math.inf) == "–"


def test_page_needs_nothing_from_outside() -> None:
    page = render_report(_report())
    assert "http" not in page
    assert "@import" not in page
    assert "<script" not in page
    links = [value for key, value in _Page(page).attributes if key in ("src", "href", "xlink:href", "srcset", "data")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^)]*)", page))


def test_ids_are_unique_over_all_figures() -> None:
    identities = [value for key, value in _Page(render_report(_report())).attributes if key == "id"]
    assert identities
    assert len(set(identities)) == len(identities)


def test_names_are_escaped_everywhere() -> None:
    evil = "<b>&\"'</td><script>alert(1)</script>"
    table = Table(evil, evil, (evil,), ((evil, (Cell(1.0),)), ("other", (Cell(2.0),))), True, "")
    page = render_report(
        Report(
            evil,
            evil,
            summary=(evil,),
            tables=(table,),
            figures=((evil, routing_heatmap([[1.0]], [evil], [evil])),),
            losses=losing_sentences((table,), evil),
            settings={evil: evil},
            command=evil,
        )
    )
    assert "<script" not in page
    assert "<b>&amp;" not in page
    shown = "".join(_Page(page).text)
    assert shown.count(evil) >= 12  # in the page and in the figure, as it was typed


def test_losses_are_told_from_the_numbers() -> None:
    told = losing_sentences((_accuracy(), _REGRET), "ours")
    assert told == Losses(close=("Accuracy (clean): best source is better, 74.5% against 73.6% (0.9 points).",))
    assert losing_sentences((_REGRET,), "point") == Losses(
        close=("Regret (clean): ours is better, -0.035 nats against 0.200 nats (0.235 nats).",)
    )
    assert losing_sentences((_accuracy(),), "somebody else") == Losses()
    assert "No competitor has a better number" in render_report(_report(losses=Losses()))


@pytest.mark.parametrize(("low", "kind"), [(0.2, "significant"), (-0.2, "close"), (0.0, "close")])
def test_the_paired_interval_decides(low: float, kind: str) -> None:
    """Not whether the two intervals overlap: on the same episodes a difference may be sure all the same."""

    def paired(title: str, column: str, row: str) -> tuple[float, float]:
        assert (title, column, row) == ("Accuracy", "clean", "best source")
        return low, 1.6

    told = losing_sentences((_accuracy(),), "ours", paired)
    sentence = (
        f"Accuracy (clean): best source is better, 74.5% against 73.6% (0.9 points, paired interval {low:.1f} to 1.6)."
    )
    assert getattr(told, kind) == (sentence,)
    assert len(told.significant) + len(told.close) == 1
    page = render_report(_report(losses=told))
    assert page.count(sentence) == 1
    assert "overlap" not in page
    assert ("Significant: on the same episodes" in page) == (kind == "significant")
    assert ("but not significantly so" in page) == (kind == "close")


def test_significant_losses_come_first() -> None:
    page = render_report(_report(losses=Losses(("surely worse",), ("perhaps worse",))))
    assert page.index("surely worse") < page.index("perhaps worse")


def test_examples_and_one_figure_stand_above_the_tables() -> None:
    picture = Picture("data:image/png;base64,AAAA")
    shown = ExampleClass(
        "<cat>", (picture, Picture("data:image/png;base64,BBBB", wrong=True)), picture, "dog", 0.61, False
    )
    task = Example("noisy", (shown,), (("face", 0.9), ("style", 0.1)), "face", 0.8, ("Torn.",), reliable=False)
    text = render_report(_report(examples=(task,)))
    page = _Page(text)
    assert ["<cat>", "", "", "✗ dog 61%"] in page.rows
    assert ("class", "wrong") in page.attributes
    assert sum(key == "src" and value == picture.source for key, value in page.attributes) == 2
    for words in ("doubted", "face 0.90", "is about: face", "80% of all its queries are right. Torn."):
        assert words in " ".join(" ".join(page.text).split())
    first_table = text.index("<h2>Numbers")
    assert text.index("<h2>Examples") < text.index("<svg") < first_table
    assert text.index("<h2>In one picture") < first_table < text.index("<h2>More pictures")
    assert text.count("<svg") == len(_report().figures)


def test_empty_report_is_still_a_page() -> None:
    page = _Page(render_report(Report("Title", "Nothing yet")))
    assert "Title" in page.text
    assert page.rows == []


def test_wide_tables_put_the_interval_below() -> None:
    wide = Table("T", "", tuple("abcdefgh"), (("ours", (Cell(10.0, 9.0, 11.0),) * 8),), True, "%")
    assert 'class="numbers stacked"' in render_report(_report(tables=(wide,)))
    assert 'class="numbers stacked"' not in render_report(_report())


def test_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(_report(), tmp_path / "new" / "folder" / "report.html")
    assert first == tmp_path / "new" / "folder" / "report.html"
    second = write_report(_report(), tmp_path / "again.html")
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match=r"report\.html cannot be written \(No space left"):
        write_report(_report(), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ValueError, match=r"runs: report\.html cannot be written"):
        write_report(_report(), tmp_path / "runs" / "report.html")


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row 'ours' of table 'Accuracy' has 1 cells; expected 2"):
        _accuracy(rows=(("ours", (Cell(1.0),)),))
    with pytest.raises(ValueError, match=r"row 'ours' more than once"):
        _accuracy(rows=(("ours", (None, None)), ("ours", (None, None))))
    with pytest.raises(ValueError, match=r"column 'x' more than once"):
        _accuracy(columns=("x", "x"))
