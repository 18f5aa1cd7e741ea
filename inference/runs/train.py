"""Training a router as a config says: search the catalog, meta-train, calibrate, choose how it is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from pyro_smat.distributed import World
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.files import load_state, save_state, write_atomically
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.pair import check_pair
from pyro_smat.inference.assembly.router import Router, build_router, catalog_supply
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.monitoring import RoutingMonitor, routing_scores
from pyro_smat.inference.evaluation.choosing import choose_on
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.runs.folder import CATALOG, MONITOR, own_folder
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.training.catalogs import CatalogSearch, needs_search
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.registry import Choice, build, takes
from pyro_smat.routing import Catalog

SEARCH_SEED = 500_009
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
    with own_folder(folder):
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
    if features is None:
        features = {
            split: opened.features(build_pool(config, split), progress=progress) for split in ("train", "validation")
        }
    train, held_out = features["train"], features["validation"]
    assert train.pool is not None
    assert held_out.pool is not None
    router = opened
    if searches:
        catalog = _searched_catalog(config, opened, train, folder, resume=resume, progress=progress)
        router = build_router(config, device, opened=(opened.network, opened.library), catalog=catalog)
    validation = _validation_batches(config, held_out, device)
    trial = train.attach(config.episodes.sampler(train.pool, seed=config.seed).sample(2).to(device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        check_pair(router.model, router.guide, trial)
    trainer = MetaTrainer(
        router.model,
        router.guide,
        elbo=build_elbo(config.objective, train, model=router.model, catalog=router.catalog),
        sampler=config.episodes.sampler(train.pool, seed=config.seed),
        features=train,
        settings=config.training,
        validation=validation,
        folder=folder,
        device=device,
    )
    history = trainer.fit(resume=resume, progress=progress)
    if config.training.temperature_scaling:
        calibrate_guide(router.model, router.guide, validation)
    sampler = config.episodes.sampler(held_out.pool, seed=VALIDATION_SEED + 1)
    deployment = choose_on(router, sampler, features=held_out, episodes=max(config.training.validation_episodes, 96))
    router = replace(router, pixels=router.pixels or PixelStatistics.of(train.pool))
    classifier = RoutedClassifier(router, deployment)
    if folder is not None and world.leads:
        write_atomically(folder / "history.csv", history.to_csv(index=False).encode())
        classifier.save(folder / "router")
        _monitor(router, validation, config.seed).save(folder / MONITOR)
    return classifier, history


def _validation_batches(config: RunConfig, held_out: SourceFeatures, device: torch.device) -> list[EpisodeBatch]:
    assert held_out.pool is not None
    sampler = config.episodes.sampler(held_out.pool, seed=VALIDATION_SEED)
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
    config: RunConfig, stand_in: Router, train: SourceFeatures, folder: Path | None, *, resume: bool, progress: bool
) -> Catalog:
    """The catalog of the folder that is resumed, or one that is searched on training episodes."""
    path = None if folder is None else folder / CATALOG
    if resume and path is not None and path.exists():
        return Catalog.from_dict(load_state(path))
    assert train.pool is not None
    sampler = config.episodes.sampler(train.pool, seed=SEARCH_SEED)

    def draw(episodes: int) -> list[EpisodeBatch]:
        size = min(episodes, config.training.episodes)
        return [sampler.sample(size).to(stand_in.device) for _ in range(-(-episodes // size))]

    search = CatalogSearch(stand_in.model, draw, config.objective.rho, config.seed, progress)
    choice: Choice = config.guide.options["catalog"]
    catalog: Catalog = build(choice, catalog_supply(config, stand_in.library, search=search))
    if path is not None and World.current().leads:
        save_state(path, catalog.to_dict())
    return catalog
