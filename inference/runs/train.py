"""Training a router as a config says: search the catalog, meta-train, calibrate, choose how it is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pyro_smat.distributed import World
from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.files import load_state, save_state, write_atomically
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.pair import check_pair
from pyro_smat.inference.assembly.router import Router, build_router, catalog_supply
from pyro_smat.inference.assembly.seen import classes_left_out
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.monitoring import RoutingMonitor, routing_scores
from pyro_smat.inference.evaluation.choosing import choose_on
from pyro_smat.inference.evaluation.source_advantages import source_advantages, warn_of_seen
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.runs.embedding import features_of_run
from pyro_smat.inference.runs.folder import CATALOG, MONITOR, own_folder
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.seen import seen_classes
from pyro_smat.inference.training.catalogs import CatalogSearch, needs_search
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.registry import Choice, build, takes
from pyro_smat.routing import Catalog

SPLITS = ("train", "validation")
SEARCH_SEED, ADVANTAGE_SEED = 500_009, 2_000_003
VALIDATION_SEED = 1_000_003  # apart from the training seed, the same for every run that is compared


@own_defaults()
def train_router(
    config: RunConfig,
    device: torch.device | str = "cpu",
    *,
    folder: Path | None = None,
    router: Router | None = None,
    features: Mapping[str, SourceFeatures] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[RoutedClassifier, pd.DataFrame]:
    """Search the catalog, meta-train a router, calibrate it and choose how it is deployed, as the config says.

    Draws come from PyTorch's global generators, as Pyro's do, seeded with ``config.seed``; afterwards these have the
    state again that the caller left them in. Another thread that draws from them meanwhile changes the run: two
    trainings need two processes.

    In torch.distributed's default group the processes train together; whatever else there is to do each does for
    itself, with the same result, and the first one writes the folder and shows progress.

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

    Raises:
        ValueError: when another process trains in the folder (:func:`pyro_smat.files.locked`), and for what the config
            says wrongly.
    """
    forked = [device] if torch.device(device).type == "cuda" else []
    with own_folder(folder), torch.random.fork_rng(devices=forked):
        return _train(config, device, folder, router, features, resume, progress)


def _train(
    config: RunConfig,
    device: torch.device | str,
    folder: Path | None,
    router: Router | None,
    features: Mapping[str, SourceFeatures] | None,
    resume: bool,
    progress: bool,
) -> tuple[RoutedClassifier, pd.DataFrame]:
    world = World.current()
    world.check_alike("the config", config.model_dump_json())
    progress = progress and world.leads
    searches = router is None and takes(config.guide, "catalog") and needs_search(config.guide.options["catalog"])
    opened = router or build_router(_without_experts(config) if searches else config, device)
    device = opened.device
    torch.manual_seed(config.seed)
    pools = {k: f.pool for k, f in features.items()} if features else {k: build_pool(config, k) for k in SPLITS}
    pool, held_out_pool = pools["train"], pools["validation"]
    assert pool is not None
    assert held_out_pool is not None
    pool, held_out_pool = pool.on(device), held_out_pool.on(device)
    seen = seen_classes(config, opened.library.names, (pool, held_out_pool))
    config = config.replaced(data={"seen": seen})
    left_out, held_out_left_out = (
        classes_left_out(seen, part, config.episodes.attributes, keep=config.data.keep_seen)
        for part in (pool, held_out_pool)
    )

    def episodes(seed: int) -> EpisodeSampler:
        return config.episodes.sampler(pool, seed=seed, exclude_classes=left_out)

    def held_out_episodes(seed: int) -> EpisodeSampler:
        return config.episodes.sampler(held_out_pool, seed=seed, exclude_classes=held_out_left_out)

    router = opened
    if searches:
        catalog = _searched_catalog(config, opened, episodes(SEARCH_SEED), folder, resume=resume, progress=progress)
        router = build_router(config, device, opened=(opened.network, opened.library), catalog=catalog)
    if features is None:
        features = features_of_run(
            config, router, pool, held_out_pool, sampler=episodes(config.seed), progress=progress
        )
    train, held_out = features["train"], features["validation"]
    if not seen and len(router.library) > 1:
        clean = (
            (train, config.episodes.sampler(pool, seed=ADVANTAGE_SEED, corruptions=(), exclude_classes=left_out)),
            (held_out, config.episodes.sampler(held_out_pool, seed=ADVANTAGE_SEED, corruptions=())),
        )
        warn_of_seen(source_advantages(router.library.names, *clean, metric=router.model.metric))
    validation = validation_batches(config, held_out, held_out_episodes(VALIDATION_SEED), device)
    trial = train.attach(episodes(config.seed).sample(2).to(device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        check_pair(router.model, router.guide, trial)
    trainer = MetaTrainer(
        router.model,
        router.guide,
        elbo=build_elbo(config.objective, train, model=router.model, catalog=router.catalog),
        sampler=episodes(config.seed),
        features=train,
        settings=config.training,
        validation=validation,
        folder=folder,
        device=device,
    )
    history = trainer.fit(resume=resume, progress=progress)
    if config.training.temperature_scaling:
        calibrate_guide(router.model, router.guide, validation)
    sampler = held_out_episodes(VALIDATION_SEED + 1)
    deployment = choose_on(router, sampler, features=held_out, episodes=max(config.training.validation_episodes, 96))
    router = replace(
        router,
        pixels=router.pixels or PixelStatistics.of(pool),
        config=router.config.replaced(data={"seen": seen}),
    )
    classifier = RoutedClassifier(router, deployment)
    if folder is not None and world.leads:
        write_atomically(folder / "history.csv", history.to_csv(index=False).encode())
        classifier.save(folder / "router")
        _monitor(router, validation, config.seed).save(folder / MONITOR)
    return classifier, history


def validation_batches(
    config: RunConfig, held_out: SourceFeatures, sampler: EpisodeSampler, device: torch.device
) -> list[EpisodeBatch]:
    """The validation episodes of a config, with features."""
    size, rest = config.training.episodes, config.training.validation_episodes
    return [held_out.attach(sampler.sample(min(size, rest - start)).to(device)) for start in range(0, rest, size)]


def _monitor(router: Router, validation: Sequence[EpisodeBatch], seed: int) -> RoutingMonitor:
    """A monitor that has seen the validation episodes and nothing else."""
    with torch.no_grad():
        scores = [routing_scores(router.guide.posterior(batch), router.model.prior) for batch in validation]
    return RoutingMonitor.from_validation({k: torch.cat([part[k] for part in scores]) for k in scores[0]}, seed=seed)


def _without_experts(config: RunConfig) -> RunConfig:
    """The config without experts and without a catalog: a router whose model a search can run."""
    plain = RunConfig.model_validate({"guide": "point"})
    return config.replaced(guide=plain.guide, prior=plain.prior, experts={"count": 0})


def _searched_catalog(
    config: RunConfig, stand_in: Router, sampler: EpisodeSampler, folder: Path | None, *, resume: bool, progress: bool
) -> Catalog:
    """The catalog of the folder that is resumed, or one that is searched on training episodes."""
    path = None if folder is None else folder / CATALOG
    if resume and path is not None and path.exists():
        return Catalog.from_dict(load_state(path))

    def draw(episodes: int) -> list[EpisodeBatch]:
        size = min(episodes, config.training.episodes)
        return [sampler.sample(size).to(stand_in.device) for _ in range(-(-episodes // size))]

    search = CatalogSearch(stand_in.model, draw, config.objective.rho, config.seed, progress)
    choice: Choice = config.guide.options["catalog"]
    catalog: Catalog = build(choice, catalog_supply(config, stand_in.library, search=search))
    if path is not None and World.current().leads:
        save_state(path, catalog.to_dict())
    return catalog
