"""Catalogs: all mixtures of a few sources, or those that a search finds, with what finding and using them costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import BLOCKS, Bench
from cells import Cells
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import evaluate_cell

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.assembly.router import catalog_supply
from pyro_smat.inference.decision.rules import PosteriorPredictive
from pyro_smat.inference.training.catalogs import CatalogSearch
from pyro_smat.registry import build, choose
from trials.rules import networks
from trials.variations import variation_keys

TITLE = "Catalogs"
SEARCH_SEED = 500_009
CATALOGS: dict[str, dict[str, Any]] = {f"all of up to {k}": {"kind": "k_hot", "max_sources": k} for k in (1, 2, 3)}
for _kind in ("greedy", "beam", "random"):
    CATALOGS |= {f"{_kind}, {size}": {"kind": _kind, "size": size, "max_sources": 3} for size in (6, 12)}


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, CATALOGS)


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    sampler = bench.sampler(bench.training_pool.pool, SEARCH_SEED, shot=(1, bench.options.shot))

    def draw(episodes: int) -> Sequence[EpisodeBatch]:
        return [bench.training_pool.attach(sampler.sample(episodes).to(bench.device))]

    for name, options in CATALOGS.items():
        left = cells.missing(variation_keys(bench.options, [name]))
        if not left:
            continue
        search = CatalogSearch(bench.router.model, draw, rho=0.5, seed=bench.seed)
        begun = time.perf_counter()
        supply = catalog_supply(bench.config(), bench.router.library, search=search)
        catalog = build(choose("catalog", options), supply)
        seconds = time.perf_counter() - begun
        router = bench.train({"guide": {"catalog": {"kind": "k_hot", "max_sources": 1}}}, catalog=catalog)
        for _, block, condition in left:
            drawn = bench.conditions(block)[condition]
            cell = evaluate_cell({"routed": (router.model, router.guide)}, drawn)
            used = {"routed": networks(router.guide, drawn, PosteriorPredictive())}
            facts = {"search": {"seconds": [seconds], "routings": [len(catalog)]}, "names": list(catalog.names)}
            cells.write((name, block, condition), cell | facts | {"networks": used})


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:
        conditions = found.parts(2)
        columns = ["routings", "search, s", *conditions, "networks a task"]

        def text(row: str, column: str, block: str = block, conditions: list[str] = conditions) -> str | None:
            first = (row, block, conditions[0])
            if column == "routings":
                return _number(found.average(first, "search", "routings", lambda v: float(v[0])), 1)
            if column == "search, s":
                return _number(found.average(first, "search", "seconds", lambda v: float(v[0])), 2)
            if column == "networks a task":
                return _number(found.average(first, "networks", "routed", lambda v: float(v.mean())), 1)
            right = found.average((row, block, column), "accuracy", "routed", accuracy)
            worst = found.average((row, block, column), "loss", "routed", cvar(0.1))
            return None if right is None else f"{right:.1f} ({worst:.2f})"

        lines += grid(f"{block}: accuracy % (CVaR .1, nats)", CATALOGS, columns, text)
    return lines


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
