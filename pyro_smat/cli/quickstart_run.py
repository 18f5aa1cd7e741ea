"""The quickstart: the whole story on glyphs, from five checkpoints to a report, on two CPU cores.

Opens (or makes) four specialists and a generalist, meta-trains a router and a point-routing baseline, evaluates both in
and out of domain with clean, confounded and mislabelled supports, and writes the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from tqdm.auto import tqdm

from pyro_smat.episodes.readers.glyphs import ATTRIBUTES
from pyro_smat.files import locked
from pyro_smat.inference.assembly.config import RunConfig, load_config
from pyro_smat.inference.assembly.router import build_router, choose_device, open_library
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.baselines import RouterBaseline
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.inference.evaluation.router import TEST_SEED, evaluate_router
from pyro_smat.inference.runs.evaluate import write_evaluation
from pyro_smat.inference.runs.folder import prepare_folder
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import train_router
from pyro_smat.report.examples import example_tasks
from pyro_smat.report.page import write_report
from pyro_smat.report.summary import build_report
from pyro_smat.sources.pretraining import glyph_choice, make_glyph_sources

POINT = "point routing"
CONDITIONS: dict[str, tuple[dict[str, object], ...]] = {
    "clean": (),
    "confounded": ({"kind": "confounding", "probability": 1.0},),
    "40% mislabelled": ({"kind": "label_noise", "fraction": 0.4},),
}
SPLITS = {"test": "In domain", "ood": "Out of domain"}
QUERIES = 10  # a class, in evaluation


def run_quickstart(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    episodes: int = 100,
    from_scratch: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Run it; returns the path of report.html.

    Args:
        folder: the run folder; replaced if it holds an earlier quickstart.
        overrides: ``key=value`` overrides of quickstart.toml.
        episodes: test episodes per condition.
        from_scratch: make the source checkpoints instead of opening those of the package.
        device: "auto", "cpu" or "cuda".
        progress: show progress bars.

    Raises:
        ValueError: when another process works in the folder.
    """
    with locked(folder):
        return _run(folder, overrides, episodes, from_scratch, device, progress)


def _run(
    folder: Path, overrides: Sequence[str], episodes: int, from_scratch: bool, device: str, progress: bool
) -> Path:
    started = time.perf_counter()
    where = choose_device(device)
    config = load_config(Path(str(files("pyro_smat.cli") / "quickstart.toml")), overrides)
    if from_scratch:
        made = make_glyph_sources(folder / "sources", seed=config.seed, device=where, progress=progress)
        config = config.replaced(sources={"files": made, "network": glyph_choice()})
    prepare_folder(folder, config, replace=True)
    opened = open_library(config)
    say = tqdm.write if progress else lambda text: None
    say(opened[1].report)

    point_config = _point_routing(config)
    point_router = build_router(point_config, where, opened=opened)
    pools = {split: build_pool(config, split) for split in ("train", "validation", *SPLITS)}
    features = {split: point_router.features(pool, progress=progress) for split, pool in pools.items()}
    classifier, history = train_router(config, where, folder=folder, features=features, progress=progress)
    point, _ = train_router(point_config, where, router=point_router, features=features, progress=progress)

    asked = config.replaced(episodes={"query": QUERIES})
    classifier = RoutedClassifier(replace(classifier.router, config=asked), classifier.deployment)
    evaluations: dict[str, Evaluation] = {}
    for split, place in SPLITS.items():
        for condition, wrong in CONDITIONS.items():
            evaluation = evaluate_router(
                classifier,
                pools[split],
                corruptions=wrong,
                episodes=episodes,
                baselines=[RouterBaseline(point, POINT)],
                features=features[split],
                progress=progress,
            )
            evaluations[f"{place}, {condition}"] = evaluation
            write_evaluation(folder / "evaluations" / f"{split}-{condition.split()[-1]}", classifier, evaluation)

    minutes = (time.perf_counter() - started) / 60
    report = build_report(
        classifier,
        evaluations,
        title="pyro-smat quickstart",
        subtitle="One router over four specialists and a generalist, on letters it has never seen",
        command="pyro-smat quickstart" + " --from-scratch" * from_scratch + "".join(f" --set {o}" for o in overrides),
        history=history,
        route_names=ATTRIBUTES,
        figures_of=[c for c in evaluations if c.startswith(SPLITS["ood"])],
        examples=[
            example
            for condition, wrong in CONDITIONS.items()
            for example in example_tasks(
                classifier,
                asked.episodes.sampler(pools["ood"], seed=TEST_SEED, corruptions=wrong),
                f"{SPLITS['ood']}, {condition}",
                route_names=ATTRIBUTES,
            )
        ],
        settings={
            "population": "new episodes from these pools of letters: "
            + ", ".join(f"{split} {len(pools[split]):,} images" for split in SPLITS),
            "device, time": f"{where}, {torch.get_num_threads()} threads, {minutes:.1f} minutes",
        },
    )
    return write_report(report, folder / "report.html")


def _point_routing(config: RunConfig) -> RunConfig:
    """The baseline: a point router under the uniform prior, trained on the mean NLL, on twice as many episodes."""
    plain = RunConfig.model_validate({"guide": "point", "decision": {"rule": "mean"}})
    return config.replaced(
        model=plain.model,
        guide=plain.guide,
        prior=plain.prior,
        objective={
            "tail_weight": 0.0,
            "episode_loss": plain.objective.episode_loss,
            "kl_weight": 1.0,
            "reference": "none",
        },
        training={"steps": 2 * config.training.steps},
        decision={"rule": plain.decision.rule},
    )
