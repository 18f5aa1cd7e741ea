"""The experiments of docs/evidence.md beside the main table: shots, tails, rules, abstention, corruptions, groups,
ablations, libraries, catalogs, mixing.

    python benchmarks/evidence/experiments.py run --seed 0 --output runs/evidence               # and 1, 2; all of them
    python benchmarks/evidence/experiments.py run --seed 0 --output runs/evidence --only tails,mixing
    python benchmarks/evidence/experiments.py show --output runs/evidence

Sources, data and the router are those of ``table.py`` (the router is trained where it is not there yet). All variations
of a seed share features of the pools and episodes. Every cell is kept as it comes under OUTPUT/seedN/EXPERIMENT; a run
that was killed goes on from there. Seeds may run at the same time, on one device too.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from bench import Bench
from cells import Cells, every_cell
from markdown import Found, Kept
from options import Options
from table import named
from trials import TRIALS

from pyro_smat.inference.assembly.router import choose_device

WRITER = "experiments.py run"
EVERY = ",".join(TRIALS)

app = typer.Typer(help=__doc__, add_completion=False)


def run_trials(bench: Bench, output: Path, names: list[str]) -> None:
    """Whatever cells of these experiments are missing."""
    folder = output / f"seed{bench.seed}"
    for name in names:
        trial, begun = TRIALS[name], time.perf_counter()
        cells = Cells(folder / name, bench.options.settings(bench.seed), WRITER)
        left = len(cells.missing(trial.keys(bench.options)))
        if left:
            trial.run(bench, cells, folder)
        typer.echo(f"seed {bench.seed}, {name}: {left} cells in {time.perf_counter() - begun:.1f} s")


@app.command()
def run(
    data: Annotated[Path, typer.Option()] = Path("data/suite"),
    sources: Annotated[Path | None, typer.Option(help="Default: DATA/sources.")] = None,
    output: Annotated[Path, typer.Option()] = Path("runs/evidence"),
    seed: Annotated[int, typer.Option()] = 0,
    only: Annotated[str, typer.Option(help="Comma-separated; default all.")] = EVERY,
    episodes: Annotated[int, typer.Option(help="Of each cell.")] = 100,
    steps: Annotated[int, typer.Option(help="Of a router's training.")] = 200,
    per_class: Annotated[int, typer.Option(help="Only so many images of a class, for a try; 0 for all.")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """One seed of the experiments; writes OUTPUT/seedN/EXPERIMENT."""
    own = Options(data=data, sources=sources or data / "sources", episodes=episodes, steps=steps, per_class=per_class)
    run_trials(Bench(own, seed, choose_device(device)), output, named(only, TRIALS, "experiment"))


@app.command()
def show(
    output: Annotated[Path, typer.Option()] = Path("runs/evidence"),
    only: Annotated[str, typer.Option(help="Comma-separated; default all.")] = EVERY,
) -> None:
    """Print the tables of what is there as Markdown, and say what is missing."""
    for name in named(only, TRIALS, "experiment"):
        typer.echo("\n".join(told(output, name)))


def told(output: Path, name: str) -> list[str]:
    """The lines of an experiment."""
    trial, kept, missing = TRIALS[name], [], []
    for folder in sorted(output.glob(f"seed*/{name}")):
        cells = list(every_cell(folder, WRITER))
        if not cells:
            continue
        settings = cells[0][1]
        wanted = trial.keys(Options.shaped_like(settings))
        there = {key: values for key, _, values in cells}
        kept += [Kept(settings["seed"], key, there[key]) for key in wanted if key in there]
        lost = Counter((settings["seed"], key[0]) for key in wanted if key not in there)
        missing += [f"seed {seed}: {n} of {first}" for (seed, first), n in lost.items()]
    if not kept:
        return [f"## {trial.TITLE}", "", f"nothing yet; run experiments.py run --only {name}", ""]
    seeds = sorted({cell.seed for cell in kept})
    lines = [f"## {trial.TITLE}", "", f"Seeds {seeds}; missing: {'; '.join(missing) or 'nothing'}.", ""]
    return [*lines, *trial.show(Found(kept))]


if __name__ == "__main__":
    app()
