"""Worst group: domains, vendors and scripts by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, grid
from options import Options
from outcomes import TEMPERATURE, Standard, baselines, evaluate_cell
from pools import by_attribute

TITLE = "Worst group"
POOLS = {"emoji by vendor": ("emoji", "vendor"), "glyphs by script": ("glyph", "script")}


def keys(options: Options) -> list[tuple[str, ...]]:
    return [(pool, condition) for pool in (*BLOCKS, *POOLS) for condition in options.conditions]


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    standard = Standard(bench, folder)
    features = dict(standard.blocks)
    for pool, condition in cells.missing(keys(bench.options)):
        if pool not in features:
            features[pool] = standard.features(by_attribute(bench.options.data, *POOLS[pool]))
        options = bench.options.conditions[condition]
        drawn = bench.draw(features[pool], 3 * bench.options.episodes, **options)
        cells.write(
            (pool, condition), evaluate_cell(standard.pairs, drawn, baselines(TEMPERATURE, bench.options.names))
        )


def show(found: Found) -> list[str]:
    lines = []
    for pool in found.parts(0):
        columns = found.parts(1)
        rows = list(found.at(pool, columns[0])[0].values["accuracy"])

        def text(method: str, condition: str, pool: str = pool) -> str | None:
            by_group: dict[str, list[float]] = {}
            for cell in found.at(pool, condition):
                values, group = np.array(cell.values["accuracy"][method]), np.array(cell.values["group"])
                for k in np.unique(group):
                    name = cell.values["groups"][k] if k >= 0 else "all"
                    by_group.setdefault(name, []).append(100 * float(values[group == k].mean()))
            means = {name: float(np.mean(values)) for name, values in by_group.items()}
            worst = min(means, key=lambda name: means[name])
            return f"{means[worst]:.1f} ({worst}), mean {np.mean(list(means.values())):.1f}"

        lines += grid(f"{pool}: accuracy % of the worst group", rows, columns, text)
    return lines
