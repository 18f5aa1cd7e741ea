"""A router and everything that a user could do instead with the same sources, in one evaluation loop on glyphs.

    python benchmarks/baselines.py --output runs/baselines               # two CPU cores: a quarter of an hour
    python benchmarks/baselines.py --device cuda --episodes 200          # minutes on a GPU
    python benchmarks/baselines.py --router runs/quickstart/router       # a router that is trained already

Sources are those of the package; the router is that of the quickstart. Settings of baselines are chosen on validation
letters with the corruptions of training; the tables are on letters of alphabets never seen (split "ood"), clean,
confounded and 40% mislabelled. The second table is the amortisation gap: what the router loses, episode by episode, to
solvers that search for the composition of each task. Writes baselines.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from tqdm.auto import tqdm

from pyro_smat.cli.quickstart_run import CONDITIONS, QUERIES
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings
from pyro_smat.inference.evaluation.baselines import (
    BEST_BY_SUPPORT,
    Baseline,
    BestSource,
    ComposedLibrary,
    HindsightMixture,
    HindsightSource,
    LinearProbe,
    LoRA,
    RouterBaseline,
    SingleSource,
    SourceAverage,
    SparseResidual,
    SupportMixture,
    SupportOracle,
    WeightedSourceAverage,
    fit_task_arithmetic,
    greedy_soup,
    lowest_validation_loss,
    uniform_soup,
)
from pyro_smat.inference.evaluation.router import evaluate_router
from pyro_smat.inference.runs.folder import prepare_folder
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import VALIDATION_SEED, train_router
from pyro_smat.metrics.arrays import Numbers
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.metrics.risk import cvar

ROUTER = "routed classifier"
RIDGES_OF_PROBE = (1e-3, 3e-3, 1e-2, 3e-2)
RIDGES_OF_RESIDUAL = (1.0, 10.0, 100.0)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)


def fit_baselines(composed: ComposedLibrary, budget: int, validation: list[EpisodeBatch]) -> list[Baseline]:
    """All baselines, settings chosen on validation episodes; says which and how long it took.

    Args:
        composed: the library.
        budget: nonzeros of every residual.
        validation: episodes with features.
    """
    best = BestSource(composed)

    def timed(make: Callable[[], Baseline]) -> Baseline:
        started = time.perf_counter()
        baseline = make()
        tqdm.write(f"{time.perf_counter() - started:6.1f} s  {baseline!r}")
        return baseline

    def residual(ridge: float) -> SparseResidual:
        return SparseResidual(best, budget, steps=5, ridge=ridge)

    residual_of_best = lowest_validation_loss([residual(ridge) for ridge in RIDGES_OF_RESIDUAL], validation)
    ridge = residual_of_best.ridge  # the other residuals take it over
    makers: list[Callable[[], Baseline]] = [
        lambda: uniform_soup(composed),
        lambda: greedy_soup(composed, validation),
        lambda: fit_task_arithmetic(composed, validation),
        lambda: SourceAverage(composed),
        lambda: WeightedSourceAverage(composed),
        lambda: best,
        lambda: residual_of_best,
        lambda: lowest_validation_loss([LoRA(best, learning_rate=rate) for rate in LEARNING_RATES], validation),
        lambda: lowest_validation_loss([LinearProbe(best, ridge) for ridge in RIDGES_OF_PROBE], validation),
        lambda: SupportMixture(composed),
        lambda: SparseResidual(SingleSource(composed), budget, steps=5, ridge=ridge),
        lambda: SupportOracle(composed, budget, mixture_steps=3, residual_steps=3, ridge=ridge),
        lambda: HindsightSource(composed),
        lambda: HindsightMixture(composed, steps=5),
    ]
    return [timed(make) for make in makers]


def methods_table(evaluation: Evaluation) -> list[str]:
    """One row a method; intervals are Student's over episodes."""
    lines = [
        "| method | accuracy %, 95% | NLL, nats, 95% | CVaR 0.1 of the NLL | seconds an episode |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in evaluation.seconds.items():
        loss = evaluation.loss(name)
        tail = cvar(torch.from_numpy(loss), 0.1).item()
        accuracy = with_interval(100 * evaluation.accuracy(name), 1)
        lines.append(f"| {name} | {accuracy} | {with_interval(loss, 3)} | {tail:.2f} | {seconds:.3g} |")
    return lines


def gap_table(evaluations: Mapping[str, Evaluation], others: list[str]) -> list[str]:
    """NLL of the router minus that of others, paired by episode."""
    lines = [
        f"| NLL of the {ROUTER} minus that of ..., nats, paired 95% | " + " | ".join(evaluations) + " |",
        "|---|" + "---|" * len(evaluations),
    ]
    for other in others:
        cells = [with_interval(e.loss(ROUTER) - e.loss(other), 3) for e in evaluations.values()]
        lines.append(f"| {other} | " + " | ".join(cells) + " |")
    return lines


def with_interval(values: Numbers, digits: int) -> str:
    """``mean ± half width``."""
    interval = episode_interval(values)
    return f"{interval.value:.{digits}f} ± {(interval.high - interval.low) / 2:.{digits}f}"


def open_router(folder: Path | None, output: Path, device: torch.device, overrides: list[str]) -> RoutedClassifier:
    """The router of a folder, or one trained as the quickstart does, in float32 like the baselines."""
    if folder is not None:
        return RoutedClassifier.load(folder, device=device)
    config = load_config(
        Path(str(files("pyro_smat.cli") / "quickstart.toml")), ["training.precision=float32", *overrides]
    )
    prepare_folder(output, config, replace=True)
    return train_router(config, device, folder=output)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--router", type=Path, help="folder of a trained router, instead of training one")
    parser.add_argument("--episodes", type=int, default=100, help="of every condition")
    parser.add_argument("--validation-episodes", type=int, default=48)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)

    started = time.perf_counter()
    classifier = open_router(arguments.router, arguments.output, device, arguments.overrides)
    trained = time.perf_counter()
    router = classifier.router
    config = router.config
    composed = ComposedLibrary(router.model.network, router.library, metric=router.model.metric, device=device)
    budget = max(1, int((1 - config.experts.sparsity) * router.library.space.dim))  # that of an expert of the router

    held_out = router.features(build_pool(config, "validation"), progress=True)
    assert held_out.pool is not None
    sampler = config.episodes.sampler(held_out.pool, seed=VALIDATION_SEED)
    sizes = [min(16, arguments.validation_episodes - start) for start in range(0, arguments.validation_episodes, 16)]
    validation = [held_out.attach(sampler.sample(size).to(device)) for size in sizes]
    baselines = fit_baselines(composed, budget, validation)
    fitted = time.perf_counter()

    asked = config.replaced(episodes={"query": QUERIES})
    classifier = RoutedClassifier(replace(router, config=asked), classifier.deployment)
    pool = build_pool(config, "ood")
    features = router.features(pool, progress=True)
    methods = [*baselines, RouterBaseline(classifier, ROUTER)]
    for method in methods:
        method(validation[0][:1])  # kernels are chosen and libraries loaded before time is taken
    evaluations: dict[str, Evaluation] = {}
    for condition, corruptions in CONDITIONS.items():
        evaluations[condition] = evaluate_router(
            classifier,
            pool,
            corruptions=corruptions,
            episodes=arguments.episodes,
            settings=EvaluationSettings.bare(),
            baselines=methods,
            features=features,
        )
    finished = time.perf_counter()

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"{where}, torch {torch.__version__}, seed {config.seed}, {arguments.episodes} episodes a condition, "
        f"{QUERIES} queries a class; residuals change {budget:,} of {router.library.space.dim:,} weights. The head's "
        f"scale is {composed.scale:g}, the router's {router.model.scale.item():.2f}. "
        f"{'Loading' if arguments.router else 'Training'} the router {trained - started:.0f} s, fitting baselines on "
        f"{arguments.validation_episodes} validation episodes {fitted - trained:.0f} s, evaluation "
        f"{finished - fitted:.0f} s.",
        "",
        "Settings: " + "; ".join(f"`{baseline!r}`" for baseline in baselines) + ".",
    ]
    for condition, evaluation in evaluations.items():
        lines += ["", f"### {condition}", "", *methods_table(evaluation)]
    oracles = [b.name for b in baselines if isinstance(b, (SupportOracle, HindsightSource, HindsightMixture))]
    lines += ["", "### Amortisation gap", "", *gap_table(evaluations, [BEST_BY_SUPPORT, *oracles])]
    text = "\n".join(lines) + "\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "baselines.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
