"""Every registered corruption of supports (and of queries) at severities 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import EXPERT, TEMPERATURE, Standard, baselines, evaluate_cell
from pools import by_attribute

from pyro_smat.episodes.corruptions import at_severity
from pyro_smat.episodes.corruptions.corruption import SEVERITIES

TITLE = "Corruptions"
VENDORS = "emoji, other vendor"
SHOWN = (EXPERT, "routed, trained", "from_sources", "average of all sources", "best source by support loss")


@dataclass(frozen=True)
class Corrupted:
    """A registered corruption with options, on some blocks."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[str, ...] = BLOCKS


CORRUPTIONS: dict[str, Corrupted] = {
    "label noise": Corrupted("label_noise"),
    "outliers of other classes": Corrupted("outliers"),
    "outliers of other domains": Corrupted("outliers", {"of": "domain"}),
    "class imbalance": Corrupted("class_imbalance"),
    "missing shots": Corrupted("missing_shots"),
    "missing classes": Corrupted("missing_class"),
    "swapped classes": Corrupted("swapped_class"),
    "label shift": Corrupted("label_shift"),
    "support of another vendor": Corrupted("support_query_mismatch", blocks=(VENDORS,)),
}
for _name in ("gaussian_blur", "gaussian_noise", "jpeg", "spurious_mark"):
    _title = _name.replace("_", " ")
    CORRUPTIONS[_title] = Corrupted(_name)
    CORRUPTIONS[f"{_title}, queries too"] = Corrupted(_name, {"queries": True})


def keys(options: Options) -> list[tuple[str, ...]]:
    return [
        (name, block, str(severity))
        for name, corrupted in CORRUPTIONS.items()
        for block in corrupted.blocks
        for severity in (0, *SEVERITIES)
        if severity or name == "label noise" or block == VENDORS
    ]


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    standard = Standard(bench, folder)
    pools = dict(standard.blocks)
    for name, block, severity in cells.missing(keys(bench.options)):
        if block not in pools:
            pools[block] = standard.features(by_attribute(bench.options.data, "emoji", "vendor"))
        corrupted = CORRUPTIONS[name]
        wrong = () if severity == "0" else (at_severity(corrupted.name, int(severity), **corrupted.options),)
        drawn = bench.draw(pools[block], bench.options.episodes, shot=bench.options.shot, corruptions=wrong)
        cells.write(
            (name, block, severity), evaluate_cell(standard.pairs, drawn, baselines(TEMPERATURE, bench.options.names))
        )


def show(found: Found) -> list[str]:
    lines = []
    columns = [str(severity) for severity in (0, *SEVERITIES)]
    for block in found.parts(1):
        for name in found.parts(0):

            def text(method: str, severity: str, name: str = name, block: str = block) -> str | None:
                at = "label noise" if severity == "0" and block != VENDORS else name
                right = found.average((at, block, severity), "accuracy", method, accuracy)
                worst = found.average((at, block, severity), "loss", method, cvar(0.1))
                return None if right is None else f"{right:.1f} ({worst:.2f})"

            if found.at(name, block, "5"):
                lines += grid(f"{block}, {name}: accuracy % (CVaR .1), severity", SHOWN, columns, text)
    return lines
