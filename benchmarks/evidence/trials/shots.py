"""Shots: accuracy, loss and how often the posterior's best source is not the best, as shots grow.

Only classes with enough images for the most shots, so that all columns are of the same classes.
"""

from __future__ import annotations

from pathlib import Path

from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import TEMPERATURE, Standard, baselines, evaluate_cell
from pools import large_classes

TITLE = "Shots"


def keys(options: Options) -> list[tuple[str, ...]]:
    return [(block, str(shot)) for block in BLOCKS for shot in options.shots]


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    standard = Standard(bench, folder)
    for block, shot in cells.missing(keys(bench.options)):
        features = standard.blocks[block]
        assert features.pool is not None
        names = large_classes(features.pool, max(bench.options.shots) + bench.options.query)
        drawn = bench.draw(features, bench.options.episodes, shot=int(shot), classes=names)
        cells.write(
            (block, shot),
            evaluate_cell(standard.pairs, drawn, baselines(TEMPERATURE, bench.options.names)) | {"classes": len(names)},
        )


def show(found: Found) -> list[str]:
    lines = []
    for block in found.parts(0):
        columns = sorted({cell.key[1] for cell in found.cells}, key=int)
        first = found.at(block, columns[0])
        rows = list(first[0].values["accuracy"]) if first else []

        def scores(method: str, shot: str, block: str = block) -> str | None:
            right = found.average((block, shot), "accuracy", method, accuracy)
            worst = found.average((block, shot), "loss", method, cvar(0.1))
            return None if right is None else f"{right:.1f} ({worst:.2f})"

        def wrong(method: str, shot: str, block: str = block) -> str | None:
            rate = found.average((block, shot), "misrouted", method, accuracy)
            lost = found.average((block, shot), "misrouting_regret", method, lambda v: float(v.mean()))
            return None if rate is None else f"{rate:.0f} ({lost:.3f})"

        lines += grid(f"{block}: accuracy % (CVaR .1, nats), shots", rows, columns, scores)
        lines += grid(f"{block}: best source misnamed % (loss, nats), shots", rows, columns, wrong)
    return lines
