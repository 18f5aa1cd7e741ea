"""Libraries: how many sources there are, and how different they are, from copies of one to all of them.

Routers are trained on each library, on the same episodes as all variations.
"""

from __future__ import annotations

from pathlib import Path

import torch
from bench import Bench
from cells import Cells
from markdown import Found
from options import Options
from outcomes import AVERAGED, TEMPERATURE, evaluate_cell, rivals

from pyro_smat.networks.features import SourceFeatures
from pyro_smat.sources import SourceLibrary
from trials.variations import variation_keys, variation_tables

TITLE = "Number and diversity of sources"
METHODS = ("routed", AVERAGED, "average of all sources", "best source by support loss")


def libraries(options: Options) -> dict[str, tuple[int, ...]]:
    """Rows of the library by name: its first R, and copies of the fallback with ever more other sources."""
    count = len(options.names)
    order = (0, count - 1, *range(1, count - 1))  # the fallback, the generalist, the specialists
    found = {f"{r} sources": order[:r] for r in range(1, count + 1)}
    found |= {f"{r} different, {count - r} copies": (order[0],) * (count - r) + order[:r] for r in range(1, count)}
    return found


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, libraries(options))


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    whole = bench.router.library
    for name, rows in libraries(bench.options).items():
        left = cells.missing(variation_keys(bench.options, [name]))
        if not left:
            continue
        names = [f"{whole.names[r]} {k}" for k, r in enumerate(rows)]
        library = SourceLibrary(names, whole.basis[torch.tensor(rows)], whole.space)
        known: dict[str, SourceFeatures] = {}
        router = bench.train({}, library=library, features=bench.of_library(library, bench.training_pool))
        averaged = bench.averaged(bench.options.noise, library)
        for _, block, condition in left:
            if block not in known:
                known[block] = bench.of_library(library, bench.blocks[block])
            drawn = bench.conditions(block)[condition].under(known[block])
            pairs = {"routed": (router.model, router.guide), AVERAGED: averaged}
            cells.write((name, block, condition), evaluate_cell(pairs, drawn, rivals(TEMPERATURE)))


def show(found: Found) -> list[str]:
    lines = []
    rows = found.parts(0)
    whole = max((row for row in rows if row.endswith("sources")), key=lambda row: int(row.split()[0]))
    for method in METHODS:
        lines += [f"**{method}**", "", *variation_tables(found, rows, method, base=whole)]
    return lines
