"""Variations of the base config, each trained on the same episodes and evaluated on the same cells."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import evaluate_cell

BASE = "base"


def variation_keys(options: Options, variations: Iterable[str]) -> list[tuple[str, ...]]:
    """(variation, block, condition)."""
    return [(v, block, condition) for v in variations for block in BLOCKS for condition in options.conditions]


def run_variations(bench: Bench, cells: Cells, variations: Mapping[str, Mapping[str, Any]]) -> None:
    """Train and evaluate those of which a cell is missing."""
    for name, changes in variations.items():
        left = cells.missing(variation_keys(bench.options, [name]))
        if not left:
            continue
        begun = time.perf_counter()
        router = bench.train(changes)
        seconds = time.perf_counter() - begun
        for _, block, condition in left:
            drawn = bench.conditions(block)[condition]
            cell = evaluate_cell({"routed": (router.model, router.guide)}, drawn)
            cells.write((name, block, condition), cell | {"seconds": seconds})


def variation_tables(found: Found, variations: Iterable[str], method: str = "routed", base: str = BASE) -> list[str]:
    """Accuracy and tail of every variation in every condition, and what it gains over the base, paired."""
    lines = []
    for block in found.parts(1):
        columns = found.parts(2)

        def scores(row: str, column: str, block: str = block) -> str | None:
            right = found.average((row, block, column), "accuracy", method, accuracy)
            worst = found.average((row, block, column), "loss", method, cvar(0.1))
            return None if right is None else f"{right:.1f} ({worst:.2f})"

        def gains(row: str, column: str, block: str = block) -> str | None:
            ours, other = (row, block, column), (base, block, column)
            return None if row == base else found.gain(ours, other, "accuracy", method, accuracy)

        rows = list(variations)
        lines += grid(f"{block}: accuracy % (CVaR .1, nats)", rows, columns, scores)
        lines += grid(f"{block}: accuracy minus that of {base!r}, points", rows, columns, gains)
    return lines
