"""The main table of docs/evidence.md: a trained router, averages without training, and every baseline, on real domains.

    python benchmarks/evidence/data.py --out data/suite
    python benchmarks/evidence/sources.py --data data/suite --out data/suite/sources --seed 0   # and 1, 2
    python benchmarks/evidence/table.py run --seed 0 --output runs/evidence                     # and 1, 2
    python benchmarks/evidence/table.py show --output runs/evidence

``run`` trains the router on the "router" classes of the four trained domains, which no source has seen, chooses the
temperature of the weighted average on the "validation" classes, and evaluates everything on the same episodes of the
"test" classes of these domains and of four domains that nothing was trained on: 5 shots, 5 shots of which 40% are
mislabelled, 1 shot, 5 shots with marks that give the label away and mislead in the queries; 5-way, 7 queries a class.
``show`` averages over domains and seeds, with paired intervals over
episodes. The router and every cell (domain, condition) are kept as they come, under OUTPUT/seedN; a run that was
killed, or is given more domains, goes on from there. Seeds may run at the same time, on one device too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from bench import Bench
from cells import Cells, every_cell
from options import Options
from outcomes import (
    AVERAGED,
    AVERAGED_TOGETHER,
    COSINE,
    EXPERT,
    ONE,
    OVER_CHANGED,
    PLAIN,
    TOGETHER,
    Standard,
    baselines,
    evaluate_cell,
    rivals,
    together,
)
from suite import TRAINED, UNSEEN
from tables import print_tables

from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.evaluation import EvaluationSettings

TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
CHOSEN, CELLS = ("chosen",), "cells"
WRITER = "table.py run"


def best_temperature(bench: Bench) -> float:
    """Of the weighted average, by its loss on validation classes, in all conditions together."""
    kinds = [{"kind": "weighted_source_average", "temperature": t, "name": str(t)} for t in TEMPERATURES]
    settings = EvaluationSettings(rules=(), scores=(), baselines=kinds, each_source=False)
    losses = np.zeros(len(TEMPERATURES))
    for options in bench.options.conditions.values():
        drawn = bench.draw(bench.parts["validation"], bench.options.episodes, seed=19, **options)
        found = drawn.evaluate(bench.router.model, bench.router.guide, settings)
        losses += [found.loss(str(t)).mean() for t in TEMPERATURES]
    return TEMPERATURES[int(losses.argmin())]


def run_cells(bench: Bench, folder: Path, domains: list[str], conditions: list[str]) -> None:
    """Whatever of these cells is not there yet."""
    cells = Cells(folder / CELLS, bench.options.settings(bench.seed), WRITER)
    left = cells.missing([(domain, condition) for domain in domains for condition in conditions])
    typer.echo(f"{folder}: {len(left)} of {len(domains) * len(conditions)} cells to make")
    if not left:
        return
    chosen = Cells(folder, cells.settings, WRITER)
    facts = chosen.read(CHOSEN)
    started = time.perf_counter()
    standard = Standard(bench, folder)
    by_cosine = standard.router(COSINE)
    pairs = {**standard.pairs, COSINE: (by_cosine.model, by_cosine.guide), PLAIN: bench.averaged(0.0)}
    pairs |= {TOGETHER: together(pairs[EXPERT]), AVERAGED_TOGETHER: together(pairs[AVERAGED])}
    changed = bench.deployed_library(standard.routers[EXPERT])
    control = bench.averaged(bench.options.noise, changed)
    for scale in ("raw_scale", "raw_ridge_scale"):  # baselines have the metric and scale of the first pair
        setattr(control[0], scale, getattr(pairs[EXPERT][0], scale))
    bench.calibrate(*control, changed)
    if facts is None:
        where = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
        facts = {"device": where, "torch": torch.__version__, "temperature": best_temperature(bench)}
        chosen.write(CHOSEN, facts | {"seconds": time.perf_counter() - started})
    for domain in dict.fromkeys(domain for domain, _ in left):
        features = standard.features(bench.pool((domain,), "test"))
        features_changed = bench.of_library(changed, features)
        for condition in (c for d, c in left if d == domain):
            begun = time.perf_counter()
            drawn = bench.draw(features, bench.options.episodes, **bench.options.table_conditions[condition])
            kinds = baselines(facts["temperature"], bench.options.names)
            cell = evaluate_cell(pairs, drawn, kinds, COSINE)
            own = features_changed if drawn.features is features else bench.of_library(changed, drawn.features)
            others = evaluate_cell({AVERAGED: control}, drawn.under(own), rivals(facts["temperature"]))
            for measure in ("accuracy", "loss"):
                cell[measure] |= {
                    f"{name}{OVER_CHANGED}": found for name, found in others[measure].items() if not name.endswith(ONE)
                }
            seconds = time.perf_counter() - begun
            cells.write((domain, condition), cell | {"seconds": seconds})
            typer.echo(f"{domain}, {condition}: {seconds:.1f} s")


app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def run(
    data: Annotated[Path, typer.Option()] = Path("data/suite"),
    sources: Annotated[Path | None, typer.Option(help="Default: DATA/sources.")] = None,
    output: Annotated[Path, typer.Option()] = Path("runs/evidence"),
    seed: Annotated[int, typer.Option()] = 0,
    episodes: Annotated[int, typer.Option(help="Of each domain and condition.")] = 100,
    steps: Annotated[int, typer.Option(help="Of the router's training.")] = 200,
    noise: Annotated[float, typer.Option(help="Expected share of wrong labels.")] = 0.1,
    most: Annotated[int, typer.Option(help="The most sources that a routing mixes.")] = 1,
    domains: Annotated[str, typer.Option(help="Comma-separated; default all.")] = ",".join((*TRAINED, *UNSEEN)),
    conditions: Annotated[str, typer.Option(help="Comma-separated; default all.")] = ",".join(
        Options().table_conditions
    ),
    per_class: Annotated[int, typer.Option(help="Only so many images of a class, for a try; 0 for all.")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """One seed: train, choose, evaluate, each only where it is not there yet; writes OUTPUT/seedN."""
    own = Options(
        data=data,
        sources=sources or data / "sources",
        episodes=episodes,
        steps=steps,
        noise=noise,
        most=most,
        per_class=per_class,
    )
    wanted = named(domains, (*own.trained, *own.unseen), "domain"), named(conditions, own.table_conditions, "condition")
    run_cells(Bench(own, seed, choose_device(device)), output / f"seed{seed}", *wanted)


@app.command()
def show(output: Annotated[Path, typer.Option()] = Path("runs/evidence")) -> None:
    """Print the tables of what is there, and say what is missing."""
    print_tables(gathered(output))


def gathered(output: Path) -> list[dict[str, Any]]:
    """Of every seed: {"seed", "settings", "facts", "results": domain -> condition -> cell}.

    Raises:
        ValueError: when there is nothing, or seeds were made with different settings.
    """
    found = []
    for folder in sorted(output.glob("seed*")):
        cells = list(every_cell(folder / CELLS, WRITER))
        if not cells:
            continue
        results: dict[str, Any] = {}
        for (domain, condition), _, values in cells:
            results.setdefault(domain, {})[condition] = values
        settings = cells[0][1]
        facts = Cells(folder, settings, WRITER).read(CHOSEN) or {}
        found.append({"seed": settings["seed"], "settings": settings, "facts": facts, "results": results})
    if not found:
        raise ValueError(f"{output} holds no seed*/{CELLS}; expected what `table.py run` wrote")
    kept = [{k: v for k, v in one["settings"].items() if k not in ("seed", "digests")} for one in found]
    if differ := sorted({k for one in kept for k in one if one[k] != kept[0].get(k)}):
        raise ValueError(f"the seeds of {output} were made with different {', '.join(differ)}; show them apart")
    return found


def named(given: str, known: Any, what: str) -> list[str]:
    """Names of a comma-separated list.

    Raises:
        ValueError: for a name that is not known.
    """
    names = [name.strip() for name in given.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{what} {unknown[0]!r} is not known; expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    app()
