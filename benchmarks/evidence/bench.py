"""Bench: one seed of the evidence: sources, pools with features, routers and episodes, for every table alike.

Networks run once over each pool; episodes are drawn once (`drawn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from drawn import AT_ONCE, Again, Drawn, drawn_from, without_pixels
from options import Options
from pools import first_of_each_class
from suite import load_pool, load_split

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.guides import PseudoBMAGuide
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.from_sources import averaging_pair
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.models import RoutedModel
from pyro_smat.networks.composition import compose
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.support_head import HeadSettings
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary

BLOCKS = ("new classes", "unseen domains")
VALIDATION = "validation classes"
CORRUPTIONS = ({"kind": "label_noise", "fraction": (0.0, 0.5), "probability": 0.5},)  # of training
WIDEST = 3
FITTED, FIT_SEED, TEST_SEED = 8, 17, 23


@dataclass(frozen=True)
class Bench:
    """One seed of an evidence run.

    Attributes:
        options: of the run.
        seed: of sources, router and data order.
        device: where to run.
    """

    options: Options
    seed: int
    device: torch.device

    def config(self, changes: Mapping[str, Any] | None = None) -> RunConfig:
        """The router over the sources, trained on 1 to 5 shots of which up to half are mislabelled; with changes."""
        own = self.options
        base = {
            "seed": self.seed,
            "data": {"kind": "none", "size": 64, "channels": 3},
            "sources": {"network": own.network, "files": own.files(self.seed)},
            "experts": {"count": 0},
            "model": {
                "kind": "routed",
                "label_noise": own.noise,
                "metric": own.metric,
                "classifier": own.classifier,
            },
            "guide": {"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": own.most}},
            "objective": {"episode_loss": "predictive_nll", "kl_weight": 0.02, "rho": 0.5, "tail_weight": 0.5},
            "episodes": {
                "way": own.way,
                "shot": (1, own.shot),
                "query": own.query,
                "skip_small_classes": True,
                "corruptions": CORRUPTIONS,
            },
            "training": {"steps": own.steps, "episodes": own.batch, "validate_every": 0},
        }
        return RunConfig(**merged(base, changes or {}))

    @cached_property
    def router(self) -> Router:
        """Not trained."""
        return build_router(self.config(), self.device)

    def pool(self, domains: Sequence[str], split: str) -> ImagePool:
        """One pool of these domains."""
        folder, few = self.options.data, self.options.per_class
        whole = load_pool(folder, domains[0], split) if len(domains) == 1 else load_split(folder, split, domains)
        return (first_of_each_class(whole, few) if few else whole).on(self.device)

    @cached_property
    def parts(self) -> Mapping[str, SourceFeatures]:
        """Features of the "router" and "validation" classes of the trained domains, embedded."""
        found = {}
        for split in ("router", "validation"):
            found[split] = self.router.features(self.pool(self.options.trained, split), of_catalog=True)
            found[split].embed()
        return found

    def sampler(self, pool: ImagePool | None, seed: int, **options: Any) -> EpisodeSampler:
        """Episodes of the shape of the run."""
        assert pool is not None
        shape = {"query": self.options.query, "skip_small_classes": True, **options}
        return EpisodeSampler(pool, self.options.way, seed=seed, **shape)

    def draw(self, features: SourceFeatures, count: int, seed: int = TEST_SEED, **options: Any) -> Drawn:
        """Episodes of a pool, on the device with what is known of their images."""
        sampler = self.sampler(features.pool, seed, **options)
        sizes = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
        return drawn_from(features, [sampler.sample(n).to(self.device) for n in sizes])

    def trained(self, folder: Path, changes: Mapping[str, Any] | None = None) -> Router:
        """The router of a run folder, trained there first where it is not, or not to the end.

        Args:
            folder: of the run.
            changes: of the config.

        Raises:
            ValueError: for a folder of another run.
        """
        saved, config = folder / "router", self.config(changes)
        if (saved / "router.json").exists():
            found = RoutedClassifier.load(saved, device=self.device).router
            same = _comparable(found.config) == _comparable(config)
            if not same or not torch.equal(found.library.basis, self.router.library.basis):
                raise ValueError(f"{saved}: trained with other options or sources; use these, or another --output")
            return found
        named = {"train": self.parts["router"], "validation": self.parts["validation"]}
        fresh = build_router(config, self.device, opened=(self.router.network, self.router.library))
        train_router(config, self.device, folder=folder, router=fresh, features=named, resume=True)
        return fresh

    @cached_property
    def blocks(self) -> Mapping[str, SourceFeatures]:
        """Features of test classes and of validation classes, under mixtures of up to three."""
        return {name: self.widely(self.block(name)) for name in (*BLOCKS, VALIDATION)}

    def block(self, name: str) -> ImagePool:
        """Test classes of the trained domains or of the unseen ones, or validation classes."""
        own = self.options
        domains = own.unseen if name == BLOCKS[1] else own.trained
        return self.pool(domains, "validation" if name == VALIDATION else "test")

    def widely(self, pool: ImagePool) -> SourceFeatures:
        """Features of a pool under all uniform mixtures of up to three sources: a variation finds its own there."""
        wide = Catalog.k_hot(self.router.library.names, max_sources=min(WIDEST, len(self.router.library)))
        return SourceFeatures(
            self.router.model.network, self.router.model.source_basis, pool, routings=wide.coefficients
        )

    @cached_property
    def training_pool(self) -> SourceFeatures:
        """The "router" classes likewise."""
        return self.widely(self.pool(self.options.trained, "router"))

    @cached_property
    def training_batches(self) -> Sequence[EpisodeBatch]:
        """The episodes of the base config's training, drawn once for all variations; without pixels (NaN in their
        place): what looks features up does not need them, and what doesn't cannot pass unseen."""
        config, pool = self.config(), self.training_pool.pool
        assert pool is not None
        sampler = config.episodes.sampler(pool, seed=config.seed)
        size, steps = self.options.batch, self.options.steps
        return [without_pixels(sampler.sample(size).to(self.device)) for _ in range(steps)]

    def conditions(self, block: str) -> Mapping[str, Drawn]:
        """The main table's conditions on a block, drawn once."""
        kept: dict[str, Mapping[str, Drawn]] = self._conditions
        if block not in kept:
            features, count = self.blocks[block], self.options.episodes
            kept[block] = {name: self.draw(features, count, **o) for name, o in self.options.conditions.items()}
        return kept[block]

    @cached_property
    def _conditions(self) -> dict[str, Mapping[str, Drawn]]:
        return {}

    def train(
        self,
        changes: Mapping[str, Any],
        *,
        library: SourceLibrary | None = None,
        catalog: Catalog | None = None,
        features: SourceFeatures | None = None,
    ) -> Router:
        """A router with another config, on the episodes that all variations train on.

        Args:
            changes: of the config.
            library: other sources.
            catalog: that was searched; default: what the config names.
            features: of the training pool under other sources.
        """
        config, library = self.config(changes), library or self.router.library
        router = build_router(config, self.device, opened=(self.router.network, library), catalog=catalog)
        features = features or self.training_pool
        sampler: Again | EpisodeSampler = Again(list(self.training_batches))
        if config.experts.count:  # networks are run: the same episodes with their pixels
            assert features.pool is not None
            sampler = config.episodes.sampler(features.pool, seed=config.seed)
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=forked):
            torch.manual_seed(config.seed)
            MetaTrainer(
                router.model,
                router.guide,
                elbo=build_elbo(config.objective, features, model=router.model, catalog=router.catalog),
                sampler=cast(EpisodeSampler, sampler),
                features=features,
                settings=config.training,
                device=self.device,
            ).fit(progress=False)
        return router

    def deployed_library(self, router: Router) -> SourceLibrary:
        """The networks of a router's catalog as sources, with experts as deployed."""
        assert router.catalog is not None
        model, space = router.model.eval(), router.library.space
        with torch.no_grad():
            rows = compose(router.catalog.coefficients.to(self.device), model.basis(), space)
        return SourceLibrary(list(router.library.names), rows.float(), space)

    def of_library(self, library: SourceLibrary, like: SourceFeatures) -> SourceFeatures:
        """Features of the same pool under other sources."""
        basis = library.basis.to(like.basis)
        return SourceFeatures(self.router.model.network, basis, like.pool)

    def averaged(self, noise: float, library: SourceLibrary | None = None) -> tuple[RoutedModel, PseudoBMAGuide]:
        """Model and guide without training, temperature fitted on validation classes.

        Args:
            noise: share of wrong labels that they expect.
            library: other sources than the bench's.
        """
        library = library or self.router.library
        model, guide = averaging_pair(
            library,
            self.router.network,
            weights="pseudo_bma",
            temperature=0.3,
            settings=HeadSettings(self.options.classifier, self.options.metric, noise),
            device=self.device,
        )
        model.source_basis = library.basis.to(self.router.model.source_basis)  # what is known of images is found
        self.calibrate(model, guide, library)
        return model, guide

    def calibrate(self, model: RoutedModel, guide: PseudoBMAGuide, library: SourceLibrary) -> None:
        """Fit the temperature of a pair over these sources on validation classes."""
        held_out = self.parts["validation"]
        if library is not self.router.library:
            held_out = self.of_library(library, held_out)
        sampler = self.sampler(held_out.pool, FIT_SEED, shot=(1, self.options.shot))
        drawn = [held_out.attach(sampler.sample(16).to(self.device)) for _ in range(FITTED)]
        calibrate_guide(model, guide, drawn)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with some values changed; a table of another kind takes the place of the whole."""
    found = dict(base)
    for key, value in changes.items():
        old = found.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        found[key] = merged(old, value) if both and value.get("kind", old.get("kind")) == old.get("kind") else value
    return found


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Without paths, and without what training writes down of the data."""
    said = config.model_dump(mode="json")
    del said["data"]["seen"], said["sources"]["files"]
    return said
