"""Accuracy against cost and latency: a router on the built-in glyphs, with fewer and fewer of its sources open.

    python benchmarks/pareto.py --output runs/pareto                  # trains a router first: minutes on two cores
    python benchmarks/pareto.py --router runs/quickstart --split test

Measures the prices of this machine, then runs every setting on the same episodes, a third each clean, confounded and
40% mislabelled: the posterior mean with its k largest sources, with and without experts; decision rules; a budget held
by projection; and one held on average by a Lagrangian over all pairs of sources, its lambda solved on validation
episodes. Writes pareto.csv, pareto.png and cost.json.

The cost model's bytes are those of the sources and experts that a task reads; its milliseconds and the measured
latency are of composing, then of a task's supports and queries through its networks. What the router or the Lagrangian
take to choose is in neither.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch

from pyro_smat.cli.cost import calibrate_router
from pyro_smat.cost import BudgetedChoice, CostModel, open_entries_of, solve_weight
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.inference import RoutedClassifier
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.evaluation.pareto import Setting, by_lagrangian, by_rule, projected, sweep, truncations
from pyro_smat.inference.evaluation.router import TEST_SEED
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import VALIDATION_SEED, train_router
from pyro_smat.plotting.style import PAPER
from pyro_smat.report.cost_figure import pareto_figure
from pyro_smat.routing import Catalog

BATCH = 16
CONDITIONS: tuple[tuple[CorruptionLike, ...], ...] = (
    (),
    ({"kind": "confounding", "probability": 1.0},),
    ({"kind": "label_noise", "fraction": 0.4},),
)
COLUMNS = {"cost_kb": "Sources and experts that a task reads (KB)", "latency_ms": "Measured latency (ms a task)"}


def open_router(folder: Path | None, steps: int, device: torch.device, output: Path) -> RoutedClassifier:
    """The saved router, or the quickstart's, trained for a few steps and saved into ``output``/router."""
    if folder is not None:
        saved = folder if (folder / "router.json").exists() else folder / "router"
        return RoutedClassifier.load(saved, device=device)
    config = load_config(Path(str(files("pyro_smat.cli") / "quickstart.toml")), [f"training.steps={steps}"])
    classifier, _ = train_router(config, device)
    classifier.save(output / "router")
    return classifier


def draw_episodes(classifier: RoutedClassifier, split: str, count: int, seed: int) -> list[EpisodeBatch]:
    """Episodes of a split, a third of them of each condition."""
    config, device = classifier.router.config, classifier.router.device
    pool, features = build_pool(config, split), classifier.router.features()  # without a pool: only what is drawn
    each = -(-count // len(CONDITIONS))
    samplers = [config.episodes.sampler(pool, seed=seed + i, corruptions=wrong) for i, wrong in enumerate(CONDITIONS)]
    return [
        features.attach(sampler.sample(min(BATCH, each - start)).to(device))
        for sampler in samplers
        for start in range(0, each, BATCH)
    ]


def pairs_of_sources(classifier: RoutedClassifier) -> torch.Tensor:
    """Candidates of the Lagrangian ``(J, [L,] C)``: uniform mixtures of one or two sources, with every expert."""
    library, experts = classifier.router.library, classifier.router.config.experts.count
    rows = Catalog.k_hot(library.names, experts, max_sources=2).coefficients.to(classifier.router.device)
    blocks = len(library.space.block_names)
    return rows if blocks == 1 else rows.unsqueeze(1).repeat(1, blocks, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", type=Path, help="a run or router folder; default: train one")
    parser.add_argument("--steps", type=int, default=40, help="of that training")
    parser.add_argument("--split", default="ood", help="of the router's data")
    parser.add_argument("--episodes", type=int, default=240)
    parser.add_argument("--budget", type=float, default=2.0, help="of a task, in whole sources read")
    parser.add_argument("--mean-budget", type=float, default=1.1, help="of the Lagrangian, likewise, on average")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/pareto"))
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    classifier = open_router(arguments.router, arguments.steps, device, arguments.output)
    router = classifier.router
    batches = draw_episodes(classifier, arguments.split, arguments.episodes, TEST_SEED)
    validation = draw_episodes(classifier, "validation", 48, VALIDATION_SEED)

    images = int((batches[0].support.mask.sum() + batches[0].query.mask.sum()) // len(batches[0]))
    prices = calibrate_router(classifier, images)
    prices.save(arguments.output / "cost.json")
    print(prices, end="\n\n")

    space, bank = router.library.space, router.model.experts
    opened = None if bank is None else open_entries_of(bank.masks(), space)
    read = prices.traffic
    budget = arguments.budget * read.least
    candidates = pairs_of_sources(classifier)
    solved = solve_on(classifier, validation, candidates, read, opened, arguments.mean_budget)
    print(
        f"lambda {solved.weight:.3g} nats a byte: on validation episodes {float(solved.costs.mean()):,.0f} of "
        f"{solved.budget:,.0f} bytes on average, {100 * solved.satisfied:.0f}% of the tasks within them\n"
    )
    settings: list[Setting] = [
        *truncations(len(router.library), router.config.experts.count),
        *(by_rule(router.model, rule) for rule in ("fallback", "map", "posterior_predictive")),
        projected(read, budget, opened),
        by_lagrangian(router.model, candidates, read.cost_of(candidates, opened), solved.weight),
    ]
    costs = [read, prices.latency]
    table = sweep(router.model, router.guide, batches, settings, costs, budget=budget, progress=True)
    table.to_csv(arguments.output / "pareto.csv", index=False, float_format="%.6g")
    figure = pareto_figure(table.assign(cost_kb=table.cost_bytes / 1e3), COLUMNS)
    figure.savefig(arguments.output / "pareto.png", dpi=160, facecolor=PAPER)
    shown = table.drop(columns=[c for c in table.columns if c.startswith("front_")])
    print(shown.to_string(index=False, float_format="{:.4g}".format))
    for column in (*(f"cost_{cost.unit}" for cost in costs), "latency_ms"):
        print(f"front of {column}: {', '.join(table.setting[table[f'front_{column}']])}")


def solve_on(
    classifier: RoutedClassifier,
    batches: list[EpisodeBatch],
    candidates: torch.Tensor,
    read: CostModel,
    opened: torch.Tensor | None,
    sources: float,
) -> BudgetedChoice:
    """Lambda at which the mean cost is that of so many whole sources, beyond the least that any candidate costs."""
    losses = torch.cat([support_candidate_losses(classifier.router.model, b, candidates).mT for b in batches])
    costs = read.cost_of(candidates, opened)
    return solve_weight(losses, costs, float(costs.min()) + (sources - 1) * sum(read.mix))


if __name__ == "__main__":
    main()
