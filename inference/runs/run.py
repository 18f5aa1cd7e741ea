"""Runs: what the command line does, as functions on folders.

A run folder holds config.json, history.csv, checkpoint.safetensors, router/ (the deployable router) and, for every
evaluation, evaluations/<name>/ with metrics.json, episodes.csv, figures/ and report.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pyro_smat.inference.runs.config import Guide, Prior, RunConfig
from pyro_smat.episodes.corruption import SupportCorruption
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.guides import CatalogGuide
from pyro_smat.inference.decision.choosing import choose_deployment, initial_deployment
from pyro_smat.inference.runs.assembly import (
    Router,
    build_elbo,
    build_pool,
    build_router,
    build_sampler,
    sources_of_routes,
    training_settings,
)
from pyro_smat.inference.training.catalog_search import search_catalog
from pyro_smat.inference.training.checkpoint import load_state, save_state, write_atomically
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.runs.custom import check_pair
from pyro_smat.inference.evaluation.abstention import abstention_outcome
from pyro_smat.inference.evaluation.baselines.baseline import Baseline
from pyro_smat.inference.evaluation.evaluate import evaluate
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.inference.evaluation.settings import EvaluationSettings
from pyro_smat.registry import build
from pyro_smat.inference.runs.families import CATALOG_FAMILIES
from pyro_smat.inference.deployment.monitoring import RoutingMonitor, routing_scores
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.trainer import CHECKPOINT, MetaTrainer
from pyro_smat.metrics import aurc
from pyro_smat.routing import Catalog

MONITOR = "monitor.json"  # of the validation episodes, for `pyro-smat monitor`
CATALOG = "catalog.safetensors"  # of a searched catalog, in the run folder
SEARCH_SEED = 500_009
VALIDATION_SEED = 1_000_003  # apart from the training seed, the same for every run that is compared
TEST_SEED = 2_000_003


def prepare_folder(folder: Path, config: RunConfig, *, resume: bool = False, replace: bool = False) -> None:
    """Make a run folder and write its config.

    Args:
        folder: the run folder.
        config: the run.
        resume: the folder may hold this run already.
        replace: the folder may hold another run, which is then overwritten.

    Raises:
        ValueError: when the folder cannot be written, holds another run, or ``resume`` meets another config.
    """
    description = json.dumps(config.model_dump(mode="json"), indent=2)
    path = folder / "config.json"
    if replace:
        write_atomically(path, description.encode())
        return
    if (folder / CHECKPOINT).exists() and not resume:
        raise ValueError(f"{folder}: already holds a run; pass --resume to continue it, or choose another --output")
    if resume and path.exists() and path.read_text() != description:
        raise ValueError(f"{folder}: holds a run with another config; resume with the same config and overrides")
    write_atomically(path, description.encode())


def train_router(
    config: RunConfig,
    device: torch.device,
    folder: Path | None = None,
    *,
    router: Router | None = None,
    features: Mapping[str, SourceFeatures] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[RoutedClassifier, pd.DataFrame]:
    """Search the catalog, meta-train a router, calibrate it and choose its abstention threshold, as the config says.

    Args:
        config: the run.
        device: where to train.
        folder: where checkpoints, the history and the router go; None keeps nothing.
        router: an assembled router to train instead of building one from the config; its catalog is kept, not searched.
        features: of the pools "train" and "validation", when they are there already.
        resume: continue from the folder's checkpoint.
        progress: show progress bars.

    Returns:
        The deployable router and the training history.
    """
    searches = router is None and config.guide.family in CATALOG_FAMILIES and config.guide.catalog.method != "k_hot"
    opened = router or build_router(_without_experts(config) if searches else config, device)
    torch.manual_seed(config.seed)
    if features is None:
        pools = {
            "train": build_pool(config, config.data.train),
            "validation": build_pool(config, config.data.validation),
        }
        features = {name: opened.features(pool, progress) for name, pool in pools.items()}
    train, held_out = features["train"], features["validation"]
    assert train.pool is not None
    assert held_out.pool is not None
    router = opened
    if searches:
        catalog = _searched_catalog(config, opened, train, folder, resume=resume, progress=progress)
        router = build_router(config, device, (opened.network, opened.library), catalog=catalog)
    validation_sampler = build_sampler(config, held_out.pool, VALIDATION_SEED)
    size = config.training.episodes
    rest = config.training.validation_episodes
    validation = [
        held_out.attach(validation_sampler.sample(min(size, rest - start)).to(device)) for start in range(0, rest, size)
    ]
    trial = build_sampler(config, train.pool, config.seed).sample(2)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        check_pair(router.model, router.guide, train.attach(trial.to(device)))
    trainer = MetaTrainer(
        router.model,
        router.guide,
        build_elbo(config, train, router),
        build_sampler(config, train.pool, config.seed),
        train,
        training_settings(config),
        validation=validation,
        folder=folder,
        device=device,
    )
    history = trainer.fit(resume=resume, progress=progress)
    if config.guide.calibrate and isinstance(router.guide, CatalogGuide):
        calibrate_guide(router.model, router.guide, validation)
    deployment = choose_deployment(
        config.decision,
        evaluate(
            router.model,
            router.guide,
            build_sampler(config, held_out.pool, VALIDATION_SEED + 1),
            held_out,
            deployment=initial_deployment(config.decision),
            settings=EvaluationSettings.bare(build(config.decision.score).reads),
            episodes=max(rest, 64),
            source_of_route=sources_of_routes(held_out.pool, router.library),
            device=device,
        ),
    )
    classifier = RoutedClassifier(router, deployment)
    if folder is not None:
        write_atomically(folder / "history.csv", history.to_csv(index=False).encode())
        classifier.save(folder / "router")
        _monitor(router, validation, config.seed).save(folder / MONITOR)
    return classifier, history


def _monitor(router: Router, validation: Sequence[EpisodeBatch], seed: int) -> RoutingMonitor:
    """A monitor that has seen the validation episodes and nothing else."""
    with torch.no_grad():
        scores = [routing_scores(router.guide.posterior(batch), router.model.prior) for batch in validation]
    return RoutingMonitor.from_validation({k: torch.cat([part[k] for part in scores]) for k in scores[0]}, seed=seed)


def _without_experts(config: RunConfig) -> RunConfig:
    """The config without experts and without a catalog: a router whose model a search can run."""
    experts, custom = config.experts.model_copy(update={"count": 0}), config.custom.model_copy(update={"guide": None})
    return config.model_copy(
        update={"guide": Guide(family="point"), "prior": Prior(), "experts": experts, "custom": custom}
    )


def _searched_catalog(
    config: RunConfig, stand_in: Router, train: SourceFeatures, folder: Path | None, *, resume: bool, progress: bool
) -> Catalog:
    """The catalog of the folder that is resumed, or one that is searched on training episodes.

    Experts have no weights yet: mixtures of sources are searched, and every one is then offered with each expert.
    """
    path = None if folder is None else folder / CATALOG
    if resume and path is not None and path.exists():
        return Catalog.from_dict(load_state(path))
    search, experts = config.guide.catalog, config.experts.count
    assert search.method != "k_hot"
    assert train.pool is not None
    sampler = build_sampler(config, train.pool, SEARCH_SEED)
    size = min(search.episodes, config.training.episodes)
    batches = [sampler.sample(size).to(stand_in.device) for _ in range(-(-search.episodes // size))]
    catalog = search_catalog(
        stand_in.model,
        batches,
        method=search.method,
        size=max(1, search.size // max(1, experts)),
        max_sources=search.max_sources,
        rho=config.objective.rho,
        beam_width=search.beam_width,
        seed=config.seed,
        progress=progress,
    ).with_experts(experts)
    if path is not None:
        save_state(path, catalog.to_dict())
    return catalog


def evaluate_router(
    classifier: RoutedClassifier,
    pool: ImagePool,
    *,
    corruption: SupportCorruption | None = None,
    episodes: int = 600,
    seed: int = TEST_SEED,
    settings: EvaluationSettings | None = None,
    baselines: Sequence[Baseline] = (),
    features: SourceFeatures | None = None,
    progress: bool = True,
) -> Evaluation:
    """A router and its baselines on a pool, with episodes shaped as its config says.

    Args:
        classifier: the router.
        pool: images.
        corruption: of the supports; default clean.
        episodes: how many.
        seed: of the episodes.
        settings: rules, scores and baselines; default: as its config says.
        baselines: further ones, already made.
        features: frozen features of the pool, when they are there already.
        progress: show a bar.
    """
    router = classifier.router
    config = router.config
    return evaluate(
        router.model,
        router.guide,
        build_sampler(config, pool, seed, corruption or SupportCorruption()),
        features or router.features(pool, progress),
        deployment=classifier.deployment,
        settings=settings or config.evaluation,
        episodes=episodes,
        seed=seed,
        source_of_route=sources_of_routes(pool, router.library),
        baselines=baselines,
        device=router.device,
        progress=progress,
    )


def metrics_of(classifier: RoutedClassifier, evaluation: Evaluation) -> dict[str, Any]:
    """Everything that goes into metrics.json."""
    deployment = classifier.deployment
    losses = evaluation.loss(deployment.method)
    scores = dict(evaluation.scores)
    scores.setdefault(deployment.scorer.name, deployment.uncertainty(evaluation.scores))
    return {
        "episodes": len(evaluation),
        "rule": deployment.rule.to_dict(),
        "methods": {method: evaluation.summary(method) for method in evaluation.methods},
        "misrouting_rate": evaluation.misrouting_rate(),
        "aurc": {name: aurc(values, losses) for name, values in scores.items()},
        "abstention": {
            "score": deployment.score.kind,
            "threshold": deployment.threshold,
            "fallback": deployment.fallback,
            "certificate": None if deployment.certificate is None else deployment.certificate.to_dict(),
            **asdict(abstention_outcome(evaluation, deployment)),
        },
    }


def write_evaluation(folder: Path, classifier: RoutedClassifier, evaluation: Evaluation) -> dict[str, Any]:
    """metrics.json and episodes.csv; returns the metrics."""
    metrics = metrics_of(classifier, evaluation)
    write_atomically(folder / "metrics.json", json.dumps(_plain(metrics), indent=2).encode())
    write_atomically(folder / "episodes.csv", evaluation.table().to_csv(index=False).encode())
    return metrics


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
