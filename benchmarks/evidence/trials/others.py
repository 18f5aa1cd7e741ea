"""Other ways to use the sources: soups, fine-tuning on the support, subspaces, a distilled universal network.

On the first episodes of each cell only, beside the routers: some fit weights to each task. Seconds are those of a
task, beyond the features of the sources. ``subspaces.py`` and ``universal.py`` make what two of the rows need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import BLOCKS, Bench
from cells import Cells
from drawn import Again, Drawn
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import EXPERT, ROUTED, Standard, evaluate_cell
from universal import UNIVERSAL

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.evaluation import Evaluation, evaluate
from pyro_smat.sources import SourceLibrary

TITLE = "Other ways to use the sources"
FEW, TUNED_ON, TUNE_SEED = 64, 32, 31
OTHERS: tuple[Any, ...] = (
    "source_average",
    "best_source",
    "uniform_soup",
    "greedy_soup",
    "task_arithmetic",
    {"kind": "linear_probe", "start": "best_source"},
    {"kind": "lora", "start": "best_source"},
)
BY_SUBSPACE: tuple[Any, ...] = (
    "subspace_residual",
    {"kind": "subspace_residual", "temperature": 0.3, "name": "average weighted by subspace residual"},
)
ALIGNED: tuple[Any, ...] = ({"kind": "aligned_source", "source": UNIVERSAL},)


def keys(options: Options) -> list[tuple[str, ...]]:
    return [(block, condition) for block in BLOCKS for condition in options.conditions]


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    own, library, standard = bench.options, bench.router.library, Standard(bench, folder)
    tuning = bench.draw(bench.parts["validation"], min(TUNED_ON, own.episodes), seed=TUNE_SEED, shot=own.shot).batches
    averaged, kinds = bench.averaged(own.noise), [*OTHERS, *(BY_SUBSPACE if library.subspaces else ())]
    file = own.sources / f"seed{bench.seed}" / f"{UNIVERSAL}.safetensors"
    distilled = None
    if file.exists():
        universal = SourceLibrary.from_files(bench.router.network, {UNIVERSAL: file})
        distilled = universal, bench.averaged(own.noise, universal)
    for block, condition in cells.missing(keys(own)):
        drawn = first(standard.drawn(block, condition), FEW)
        parts = [evaluated(averaged, drawn, kinds, tuning, library)]
        if distilled is not None:
            known = drawn.under(bench.of_library(distilled[0], drawn.features))
            parts.append(evaluated(distilled[1], known, ALIGNED, tuning, distilled[0]))
        names = [[m for m in one.methods if m not in ("posterior_predictive", "fallback")] for one in parts]
        each = [(one, m) for one, methods in zip(parts, names, strict=True) for m in methods]
        cell = evaluate_cell({name: standard.pairs[name] for name in (EXPERT, ROUTED)}, drawn)
        cell["accuracy"] |= {m: one.accuracy(m) for one, m in each}
        cell["loss"] |= {m: one.loss(m) for one, m in each}
        cells.write((block, condition), cell | {"seconds": {m: [s] for one in parts for m, s in one.seconds.items()}})


def first(drawn: Drawn, count: int) -> Drawn:
    """The first batches, of at least so many episodes where there are so many."""
    batches: list[EpisodeBatch] = []
    for batch in drawn.batches:
        if sum(map(len, batches)) < count:
            batches.append(batch)
    return Drawn(batches, drawn.features)


def evaluated(pair: Any, drawn: Drawn, kinds: Any, tuning: Any, library: SourceLibrary) -> Evaluation:
    """Baselines on drawn episodes, tuned on others."""
    settings = EvaluationSettings(rules=(), scores=(), baselines=kinds, each_source=False)
    return evaluate(
        *pair,
        Again(list(drawn.batches)),
        drawn.features,
        settings=settings,
        validation=lambda: tuning,
        subspaces=lambda: library.subspaces,
        episodes=len(drawn),
        batch_size=len(drawn.batches[0]),
        device=drawn.features.basis.device,
    )


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:
        conditions = found.parts(1)
        methods = [m for cell in found.at(block, conditions[0]) for m in cell.values["accuracy"]]

        def text(method: str, column: str, block: str = block, conditions: list[str] = conditions) -> str | None:
            if column == "seconds a task":
                seconds = found.average((block, conditions[0]), "seconds", method, lambda v: float(v[0]))
                return None if seconds is None else f"{seconds:.3f}"
            right = found.average((block, column), "accuracy", method, accuracy)
            worst = found.average((block, column), "loss", method, cvar(0.1))
            return None if right is None else f"{right:.1f} ({worst:.2f})"

        corner = f"{block}: accuracy % (CVaR .1, nats)"
        lines += grid(corner, dict.fromkeys(methods), [*conditions, "seconds a task"], text)
    return lines
