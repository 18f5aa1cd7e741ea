"""Variations of the base config, each trained on the same episodes and evaluated on the same cells."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import BLOCKS, VALIDATION, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import evaluate_cell

from pyro_smat.networks.features import SourceFeatures

BASE = "base"


@dataclass
class VariationTrial:
    """A trial of variations; also on validation classes, where one may choose among them.

    Attributes:
        TITLE: of its tables.
        variations: changes of the base config by name.
    """

    TITLE: str
    variations: Mapping[str, Mapping[str, Any]]

    def keys(self, options: Options) -> list[tuple[str, ...]]:
        return variation_keys(options, self.variations, (VALIDATION, *BLOCKS))

    def run(self, bench: Bench, cells: Cells, folder: Path) -> None:
        for name, changes in self.variations.items():
            left = cells.missing([key for key in self.keys(bench.options) if key[0] == name])
            if not left:
                continue
            begun = time.perf_counter()
            router = bench.train(changes)
            seconds = time.perf_counter() - begun
            changed: dict[str, SourceFeatures] = {}
            for _, block, condition in left:
                drawn = bench.conditions(block)[condition]
                if router.model.experts is not None:  # networks that are not those of the block's features
                    if block not in changed:
                        changed[block] = router.features(bench.block(block), of_catalog=True)
                    drawn = drawn.under(changed[block])
                cell = evaluate_cell({"routed": (router.model, router.guide)}, drawn)
                cells.write((name, block, condition), cell | {"seconds": seconds})

    def show(self, found: Found) -> list[str]:
        return variation_tables(found, self.variations)


def variation_keys(
    options: Options, variations: Iterable[str], blocks: Sequence[str] = BLOCKS
) -> list[tuple[str, ...]]:
    """(variation, block, condition)."""
    return [(v, block, condition) for v in variations for block in blocks for condition in options.conditions]


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
