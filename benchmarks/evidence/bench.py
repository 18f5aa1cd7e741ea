"""Bench: one seed of the evidence: sources, pools with features, routers and episodes, for every table alike.

Networks run once over each pool. Episodes are drawn once for all that is compared on them (`Drawn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from options import Options
from suite import load_pool, load_split

from pyro_smat.episodes import EpisodeBatch, EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.guides import PseudoBMAGuide
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.from_sources import averaging_pair
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings, evaluate
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.models import RoutedModel
from pyro_smat.networks.features import SourceFeatures

AT_ONCE = 64  # episodes that are evaluated together: small steps wait for the device most of the time
FITTED, FIT_SEED, TEST_SEED = 8, 17, 23


@dataclass(frozen=True)
class Drawn:
    """Episodes that were drawn, to be drawn again and again: a stream of the same batches for every method.

    Attributes:
        batches: of `AT_ONCE` episodes, the last may be smaller.
        features: of their pool.
    """

    batches: Sequence[EpisodeBatch]
    features: SourceFeatures

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def evaluate(self, model: RoutedModel, guide: Any, settings: EvaluationSettings) -> Evaluation:
        """A pair on these episodes."""
        stream, device = _Again(list(self.batches)), self.features.basis.device
        return evaluate(
            model,
            guide,
            stream,
            self.features,
            settings=settings,
            episodes=len(self),
            batch_size=AT_ONCE,
            device=device,
        )


@dataclass(frozen=True)
class _Again:
    left: list[EpisodeBatch]

    def sample(self, count: int) -> EpisodeBatch:
        batch = self.left.pop(0)
        assert len(batch) == count
        return batch


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

    def config(self, **sections: Any) -> RunConfig:
        """The router over the sources, trained on 1 to 5 shots of which up to half are mislabelled; other sections."""
        own = self.options
        base = RunConfig(
            seed=self.seed,
            data={"kind": "none", "size": 64, "channels": 3},
            sources={"network": own.network, "files": own.files(self.seed)},
            experts={"count": 0},
            model={"kind": "routed", "label_noise": own.noise},
            guide={"kind": "catalog", "catalog": {"kind": "k_hot", "max_sources": own.most}},
            objective={"episode_loss": "ensemble_nll", "kl_weight": 0.02, "rho": 0.5, "tail_weight": 0.5},
            episodes={
                "way": own.way,
                "shot": (1, own.shot),
                "query": own.query,
                "skip_small_classes": True,
                "corruptions": ({"kind": "label_noise", "fraction": (0.0, 0.5), "probability": 0.5},),
            },
            training={"steps": own.steps, "episodes": own.batch, "validate_every": 0},
        )
        return base.replaced(**sections)

    @cached_property
    def router(self) -> Router:
        """Not trained."""
        return build_router(self.config(), self.device)

    def pool(self, domains: Sequence[str], split: str) -> ImagePool:
        """One pool of these domains."""
        folder, few = self.options.data, self.options.per_class
        whole = load_pool(folder, domains[0], split) if len(domains) == 1 else load_split(folder, split, domains)
        return first_of_each_class(whole, few) if few else whole

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
        return Drawn([features.attach(sampler.sample(n).to(self.device)) for n in sizes], features)

    def trained(self, folder: Path) -> Router:
        """The router of a run folder, trained there first where it is not, or not to the end.

        Raises:
            ValueError: for a folder of another run.
        """
        saved = folder / "router"
        if (saved / "router.json").exists():
            found = RoutedClassifier.load(saved, device=self.device).router
            same = _comparable(found.config) == _comparable(self.config())
            if not same or not torch.equal(found.library.basis, self.router.library.basis):
                raise ValueError(f"{saved}: trained with other options or sources; use these, or another --output")
            return found
        named = {"train": self.parts["router"], "validation": self.parts["validation"]}
        fresh = build_router(self.config(), self.device, opened=(self.router.network, self.router.library))
        train_router(self.config(), self.device, folder=folder, router=fresh, features=named, resume=True)
        return fresh

    def averaged(self, noise: float) -> tuple[RoutedModel, PseudoBMAGuide]:
        """Model and guide without training over the same sources, temperature fitted on validation classes."""
        model, guide = averaging_pair(
            self.router.library,
            self.router.network,
            weights="pseudo_bma",
            temperature=0.3,
            label_noise=noise,
            device=self.device,
        )
        model.source_basis = self.router.model.source_basis  # of the same dtype: what is known of images is found
        held_out = self.parts["validation"]
        sampler = self.sampler(held_out.pool, FIT_SEED, shot=(1, self.options.shot))
        drawn = [held_out.attach(sampler.sample(16).to(self.device)) for _ in range(FITTED)]
        calibrate_guide(model, guide, drawn)
        return model, guide


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Without paths, and without what training writes down of the data."""
    said = config.model_dump(mode="json")
    del said["data"]["seen"], said["sources"]["files"]
    return said


def first_of_each_class(pool: ImagePool, count: int) -> ImagePool:
    """A pool of the first images of every class."""
    label = pool.labels[:, 0]
    place = torch.zeros_like(label)
    for k in label.unique().tolist():
        place[label == k] = torch.arange(int((label == k).sum()))
    kept = place < count
    return replace(pool, images=pool.images[kept], labels=pool.labels[kept], domain=pool.domain[kept])
