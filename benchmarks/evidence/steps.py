"""What training costs over features that are looked up: embedding the pool once, then its steps.

    python benchmarks/evidence/steps.py --data data/suite --most 1 --most 2        # 6 and 21 routings of six sources

Trains the router of `table.py` without an expert; the first row has the start of the device in it, so give one twice.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from bench import Bench
from options import Options

from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.training.trainer import MetaTrainer


def main(
    data: Annotated[Path, typer.Option()] = Path("data/suite"),
    sources: Annotated[Path | None, typer.Option(help="Default: DATA/sources.")] = None,
    most: Annotated[list[int] | None, typer.Option(help="The most sources that a routing mixes.")] = None,
    steps: Annotated[int, typer.Option()] = 200,
    per_class: Annotated[int, typer.Option(help="Only so many images of a class, for a try; 0 for all.")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Print a row for each catalog."""
    where = choose_device(device)
    typer.echo("| routings | images | embedding, s | steps | s | ms a step |\n|---|---|---|---|---|---|")
    for size in most or [1, 2]:
        own = Options(data=data, sources=sources or data / "sources", most=size, steps=steps, per_class=per_class)
        typer.echo(row(Bench(own, 0, where)))


def row(bench: Bench) -> str:
    """The times of one catalog."""
    config, router = bench.config(), bench.router
    pool = bench.pool(bench.options.trained, "router")
    begun = _now(bench.device)
    features = router.features(pool, of_catalog=True)
    features.embed()
    embedded = _now(bench.device)
    trainer = MetaTrainer(
        router.model,
        router.guide,
        elbo=build_elbo(config.objective, features, model=router.model, catalog=router.catalog),
        sampler=config.episodes.sampler(pool, seed=config.seed),
        features=features,
        settings=config.training,
        device=bench.device,
    )
    ready = _now(bench.device)
    trainer.fit(progress=False)
    steps, seconds = bench.options.steps, _now(bench.device) - ready
    assert router.catalog is not None
    times = f"{embedded - begun:.2f} | {steps} | {seconds:.2f} | {1000 * seconds / steps:.0f}"
    return f"| {len(router.catalog)} | {len(pool)} | {times} |"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
