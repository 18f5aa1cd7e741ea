"""The main table of docs/evidence.md: a trained router, averages without training, and every baseline, on real domains.

    python benchmarks/evidence/data.py --out data/suite
    python benchmarks/evidence/sources.py --data data/suite --out data/suite/sources --seed 0   # and 1, 2
    python benchmarks/evidence/table.py run --seed 0 --output runs/evidence                     # and 1, 2
    python benchmarks/evidence/table.py show --output runs/evidence

``run`` trains the router on the "router" classes of the four trained domains, which no source has seen, chooses the
temperature of the weighted average on the "validation" classes, and evaluates everything on the same episodes of the
"test" classes of these domains and of four domains that nothing was trained on: 5 shots, 5 shots of which 40% are
mislabelled, 1 shot; 5-way, 7 queries a class. ``show`` averages over domains and seeds, with paired intervals over
episodes. A seed whose results are there is left alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from suite import TRAINED, UNSEEN, load_pool, load_split

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.files import write_atomically
from pyro_smat.guides import PseudoBMAGuide
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router, build_router, choose_device
from pyro_smat.inference.deployment.from_sources import averaging_pair
from pyro_smat.inference.evaluation import EvaluationSettings, evaluate
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.support_head import HeadSettings

WAY, SHOT, QUERY = 5, 5, 7
NOISE = {"kind": "label_noise", "fraction": 0.4}
CONDITIONS: dict[str, dict[str, Any]] = {
    "5-shot": {"shot": SHOT},
    "40% mislabelled": {"shot": SHOT, "corruptions": (NOISE,)},
    "1-shot": {"shot": 1},
}
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)
SOURCES = ("imagenet", "emoji", "glyph", "texture", "clipart", "generalist")
TAIL = 0.1
ROUTED, MAP, AVERAGED, PLAIN = "routed, trained", "routed, trained: one network", "from_sources", "from_sources, plain"


@dataclass(frozen=True)
class Cell:
    """Accuracy and loss ``(N,)`` of every method on the same episodes."""

    accuracy: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]


def config_of(sources: Path, seed: int, *, noise: float, steps: int, most: int) -> RunConfig:
    """The router over the six sources, trained on 1 to 5 shots of which up to half are mislabelled."""
    return RunConfig(
        seed=seed,
        data={"kind": "none", "size": 64, "channels": 3},
        sources={"network": "mobilenet_v2", "files": {n: sources / f"{n}.safetensors" for n in SOURCES}},
        experts={"count": 0},
        model={"kind": "routed", "label_noise": noise},
        guide={"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": most}},
        objective={"episode_loss": "ensemble_nll", "kl_weight": 0.02, "rho": 0.5, "tail_weight": 0.5},
        episodes={
            "way": WAY,
            "shot": (1, SHOT),
            "query": QUERY,
            "skip_small_classes": True,
            "corruptions": ({"kind": "label_noise", "fraction": (0.0, 0.5), "probability": 0.5},),
        },
        training={"steps": steps, "episodes": 16, "validate_every": 0},
    )


def averaged(router: Router, noise: float, validation: SourceFeatures) -> tuple[Any, PseudoBMAGuide]:
    """Model and guide without training over the same sources, with the temperature fitted on validation classes."""
    model, guide = averaging_pair(
        router.library,
        router.network,
        weights="pseudo_bma",
        temperature=0.3,
        settings=HeadSettings(label_noise=noise),
        device=router.device,
    )
    sampler = _sampler(validation.pool, 17, shot=(1, SHOT))
    calibrate_guide(model, guide, [validation.attach(sampler.sample(16).to(router.device)) for _ in range(8)])
    return model, guide


def best_temperature(router: Router, validation: SourceFeatures, episodes: int) -> float:
    """Of the weighted average, by its loss on validation classes, clean and mislabelled."""
    kinds = [{"kind": "weighted_source_average", "temperature": t, "name": str(t)} for t in TEMPERATURES]
    settings = EvaluationSettings(rules=(), scores=(), baselines=kinds, each_source=False)
    losses = np.zeros(len(TEMPERATURES))
    for options in CONDITIONS.values():
        found = evaluate(
            router.model,
            router.guide,
            _sampler(validation.pool, 19, **options),
            validation,
            settings=settings,
            episodes=episodes,
            device=router.device,
        )
        losses += [found.loss(str(t)).mean() for t in TEMPERATURES]
    return TEMPERATURES[int(losses.argmin())]


def _sampler(pool: ImagePool | None, seed: int, **options: Any) -> EpisodeSampler:
    assert pool is not None
    return EpisodeSampler(pool, WAY, query=QUERY, seed=seed, skip_small_classes=True, **options)


def evaluate_all(pairs: dict[str, tuple[Any, Any]], router: Router, pool: ImagePool, temperature: float, n: int) -> Any:
    """Condition -> cell: every pair and every baseline on the same episodes of a pool."""
    baselines: list[Any] = [
        "best_source",
        "source_average",
        {"kind": "weighted_source_average", "temperature": temperature},
        {"kind": "concatenation", "temperature": temperature},
    ]
    features = router.features(pool, of_catalog=True)
    found = {}
    for condition, options in CONDITIONS.items():
        cell = Cell({}, {})
        for number, (name, (model, guide)) in enumerate(pairs.items()):
            own = EvaluationSettings(rules=("map",) if number == 0 else (), scores=(), baselines=baselines)
            if number:
                own = EvaluationSettings.bare()
            sampler = _sampler(pool, 23, **options)
            result = evaluate(model, guide, sampler, features, settings=own, episodes=n, device=router.device)
            names = {"posterior_predictive": name} | ({"map": MAP} if number == 0 else {})
            skipped = ("fallback",)
            for method in result.methods:
                if method in names or (number == 0 and method not in skipped):
                    cell.accuracy[names.get(method, method)] = result.accuracy(method)
                    cell.loss[names.get(method, method)] = result.loss(method)
        found[condition] = cell
    return found


app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def run(
    data: Annotated[Path, typer.Option()] = Path("data/suite"),
    sources: Annotated[Path | None, typer.Option(help="Default: DATA/sources.")] = None,
    output: Annotated[Path, typer.Option()] = Path("runs/evidence"),
    seed: Annotated[int, typer.Option()] = 0,
    episodes: Annotated[int, typer.Option(help="Of each domain and condition.")] = 200,
    steps: Annotated[int, typer.Option(help="Of the router's training.")] = 200,
    noise: Annotated[float, typer.Option(help="Expected share of wrong labels.")] = 0.1,
    most: Annotated[int, typer.Option(help="The most sources that a routing mixes.")] = 1,
    domains: Annotated[str, typer.Option(help="Comma-separated; default all.")] = ",".join((*TRAINED, *UNSEEN)),
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """One seed: train, choose, evaluate; writes OUTPUT/seedN.json."""
    target = output / f"seed{seed}.json"
    if target.exists():
        typer.echo(f"{target} is there already")
        return
    started = time.perf_counter()
    config = config_of((sources or data / "sources") / f"seed{seed}", seed, noise=noise, steps=steps, most=most)
    router = build_router(config, choose_device(device))
    features = {
        split: router.features(load_split(data, split, TRAINED), of_catalog=True) for split in ("router", "validation")
    }
    for part in features.values():
        part.embed()
    embedded = time.perf_counter()
    trained, history = train_router(
        config, router=router, features={"train": features["router"], "validation": features["validation"]}
    )
    seconds = {"embedding": embedded - started, "training": time.perf_counter() - embedded}
    typer.echo(f"embedding {seconds['embedding']:.1f} s, {steps} steps and choosing {seconds['training']:.1f} s")
    temperature = best_temperature(router, features["validation"], episodes)
    pairs = {ROUTED: (trained.router.model, trained.router.guide)}
    pairs |= {name: averaged(router, e, features["validation"]) for name, e in ((AVERAGED, noise), (PLAIN, 0.0))}
    results = {}
    for domain in domains.split(","):
        cells = evaluate_all(pairs, router, load_pool(data, domain, "test"), temperature, episodes)
        results[domain] = {
            condition: {
                "accuracy": {k: v.tolist() for k, v in cell.accuracy.items()},
                "loss": {k: v.tolist() for k, v in cell.loss.items()},
            }
            for condition, cell in cells.items()
        }
        typer.echo(f"{domain}: {time.perf_counter() - started:.0f} s")
    where = torch.cuda.get_device_name() if router.device.type == "cuda" else "CPU"
    facts = {
        "seed": seed,
        "device": where,
        "torch": torch.__version__,
        "seconds": seconds | {"all": time.perf_counter() - started},
        "temperature": temperature,
        "noise": noise,
        "max_sources": most,
        "last_loss": float(history["episode_loss"].iloc[-1]) if len(history) else None,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps({"facts": facts, "results": results}).encode())


@app.command()
def show(output: Annotated[Path, typer.Option()] = Path("runs/evidence")) -> None:
    """Print the tables of all seeds that are there."""
    from tables import print_tables

    found = [json.loads(path.read_text()) for path in sorted(output.glob("seed*.json"))]
    if not found:
        raise typer.BadParameter(f"{output} holds no seed*.json; expected what `table.py run` wrote")
    print_tables(found)


if __name__ == "__main__":
    app()
