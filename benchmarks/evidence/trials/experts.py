"""Experts: with and without, how many, how sparse, and what shares a gate, at the same learning rate.

Routers with experts run networks in training; they draw the same episodes as the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import Bench, merged
from cells import Cells
from markdown import Found
from options import Options
from outcomes import WITH_EXPERT

from trials.variations import BASE, run_variations, variation_keys, variation_tables

TITLE = "Experts"
VARIED: dict[str, dict[str, Any]] = {
    "one expert, 10% of the coordinates": {},
    "3% of the coordinates": {"sparsity": 0.97},
    "half of the coordinates": {"sparsity": 0.5},
    "all coordinates": {"sparsity": 0.0},
    "10%, whole channels": {"granularity": "channel"},
    "10%, whole tensors": {"granularity": "tensor"},
    "10% of the coordinates, top-k gates": {"gates": "top_k"},
    "two experts, 10% of the coordinates": {"count": 2},
}
VARIATIONS: dict[str, dict[str, Any]] = {BASE: {}}
VARIATIONS |= {name: merged(WITH_EXPERT, {"experts": changes}) for name, changes in VARIED.items()}


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, VARIATIONS)


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    run_variations(bench, cells, VARIATIONS)


def show(found: Found) -> list[str]:
    return variation_tables(found, VARIATIONS)
