"""Tails: routers trained on the tail of each fraction rho, and their tails at each level, in and out of domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options

from trials.variations import run_variations, variation_keys

TITLE = "Tail fraction"
LEVELS = (0.05, 0.1, 0.2)
VARIATIONS: dict[str, dict[str, Any]] = {"mean": {"objective": {"tail_weight": 0.0}}}
VARIATIONS |= {f"rho {rho}": {"objective": {"rho": rho, "threshold": "queue"}} for rho in (0.05, 0.1, 0.2, 0.5)}
VARIATIONS |= {
    f"rho {rho}, tail alone": {"objective": {"rho": rho, "threshold": "queue", "tail_weight": 1.0}} for rho in (0.1,)
}


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, VARIATIONS)


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    run_variations(bench, cells, VARIATIONS)


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:
        for condition in found.parts(2):
            columns = {f"CVaR {rho:g}": ("loss", cvar(rho)) for rho in LEVELS}
            columns = {"accuracy %": ("accuracy", accuracy), "loss": ("loss", lambda v: float(v.mean())), **columns}

            def text(row: str, column: str, at: Any = (block, condition), columns: Any = columns) -> str | None:
                measure, statistic = columns[column]
                value = found.average((row, *at), measure, "routed", statistic)
                return None if value is None else f"{value:.{1 if measure == 'accuracy' else 3}f}"

            lines += grid(f"{block}, {condition}: trained on", VARIATIONS, list(columns), text)
    return lines
