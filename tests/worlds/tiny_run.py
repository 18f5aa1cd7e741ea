"""A meta-training run of a second, for the tests of training; also a program that can be killed.

``python tiny_run.py FOLDER STEP`` trains into FOLDER, says so after every step, and waits for ever after STEP.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.guides import PointGuide
from pyro_smat.inference.assembly.config import RunConfig, load_config
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.runs.train import train_router
from pyro_smat.inference.training.trainer import MetaTrainer
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import accepts, find, names
from pyro_smat.sources import SourceLibrary

ENCODING_GUIDES = tuple(name for name in names("guide") if accepts(find("guide", name), "encoder"))
STEPS = 10
CHECKPOINT_EVERY = 3
VALIDATE_EVERY = 4
SETTINGS = (
    "data.size=8",
    "episodes.way=[2, 4]",
    "episodes.shot=[2, 3]",
    "episodes.query=2",
    "episodes.corruptions=[{kind='label_noise', fraction=0.3, probability=0.5}]",
    "experts.count=2",
    "experts.sparsity=0.6",
    "guide.encoder={kind='evidence', hidden=8}",
    "objective.rho=0.5",
    "objective.tail_weight=1.0",
    "objective.episode_loss=mean_nll",
    "objective.num_particles=2",
    f"training.steps={STEPS}",
    "training.episodes=10",
    "training.warmup=2",
    f"training.checkpoint_every={CHECKPOINT_EVERY}",
    f"training.validate_every={VALIDATE_EVERY}",
    "training.validation_episodes=4",
)
CASES: dict[str, tuple[str, ...]] = {
    "logistic_normal": (),
    "catalog": ("guide.kind=catalog",),
    "concrete": ("guide.kind=concrete", "training.kl_warmup=3", "training.kl_cycles=2", "experts.ramp=0.8"),
    "score_function": (
        "guide.kind=catalog",
        "guide.estimator=score_function",
        "objective.baseline=decaying_average",
        "objective.threshold=queue",
    ),
    "learned_threshold": ("objective.threshold=learned", "experts.budget=primal_dual", "objective.entropy_weight=0.5"),
}


def tiny_config(overrides: Sequence[str] = ()) -> RunConfig:
    return load_config(None, [*SETTINGS, *overrides])


def tiny_pool(seed: int = 0) -> ImagePool:
    """540 images of 8 x 8 pixels: six colours (upper half) times six shapes (lower half), with noise."""
    cells = torch.tensor([cell for cell in itertools.product(range(6), range(6)) for _ in range(15)])
    means = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.stack([means[0][cells[:, 0]], means[1][cells[:, 1]]], 1).unsqueeze(1)
    large = pixels.repeat_interleave(4, -1).repeat_interleave(4, -2)
    noisy = (large + 0.2 * torch.randn(large.shape, generator=generator)).clamp(0, 1)
    return ImagePool(
        images=(noisy * 255).to(torch.uint8),
        labels=cells,
        attributes=("colour", "shape"),
        class_names=(tuple(f"colour{i}" for i in range(6)), tuple(f"shape{i}" for i in range(6))),
        domain=torch.zeros(len(cells), dtype=torch.long),
    )


def tiny_sources(config: RunConfig, count: int = 3) -> tuple[torch.nn.Module, SourceLibrary]:
    """One layer with an activation, 325 weights, and random sources."""
    with torch.random.fork_rng(devices=[]):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Tanh())
    space = ParameterSpace.from_module(network, config.sources.blocks or None)
    generator = torch.Generator().manual_seed(0)
    basis = 0.25 * torch.randn(count, space.dim, generator=generator)
    return network, SourceLibrary(("a", "b", "c")[:count], basis, space)


def tiny_router(config: RunConfig, **options: Any) -> Router:
    return build_router(config, opened=tiny_sources(config), **options)


def build_trainer(
    folder: Path | None,
    case: str = "logistic_normal",
    overrides: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **changed: Any,
) -> MetaTrainer:
    """New objects every time, always the same; ``changed`` are settings of the trainer."""
    settings = [f"training.{name}={value}" for name, value in changed.items()]
    config = tiny_config([*CASES[case], *settings, *overrides])
    router = tiny_router(config, device=device)
    if dtype is not None:
        router.model.to(dtype).compute_dtype = dtype
        router.guide.to(dtype)
    features = router.features(tiny_pool())
    held_out = EpisodeSampler(features.pool, 3, 2, 2, seed=2)
    torch.manual_seed(0)
    return MetaTrainer(
        router.model,
        router.guide,
        elbo=build_elbo(config.objective, features, model=router.model, catalog=router.catalog),
        sampler=config.episodes.sampler(features.pool, seed=1),
        features=features,
        settings=config.training,
        validation=[features.attach(held_out.sample(4).to(router.device))],
        folder=folder,
        device=router.device,
    )


def moved(overrides: Sequence[str], steps: int = 1) -> dict[str, bool]:
    """Train for some steps of 4 episodes; which parameters of model and guide are not what they were."""
    trainer = build_trainer(None, overrides=overrides, episodes=4, validate_every=0, steps=max(steps, 2), warmup=0)
    named = {**dict(trainer.model.named_parameters()), **dict(trainer.guide.named_parameters())}
    before = {name: p.detach().clone() for name, p in named.items()}
    for _ in range(steps):
        row = trainer.training_step()
        undefined = {name for name, value in row.items() if value != value}
        assert undefined == ({"mutual_information"} if isinstance(trainer.guide, PointGuide) else set()), row
    assert all(torch.isfinite(p).all() for p in named.values())
    return {name: not torch.equal(p, before[name]) for name, p in named.items()}


def quick_config(overrides: Sequence[str] = ()) -> RunConfig:
    """Two steps of four episodes."""
    settings = ["training.steps=2", "training.episodes=4", "training.validate_every=0", "objective.rho=1.0"]
    return tiny_config([*settings, "training.warmup=1", "training.kl_warmup=0", *overrides])


def trained(
    config: RunConfig,
    router: Router | None = None,
    *,
    opened: tuple[torch.nn.Module, SourceLibrary] | None = None,
    **how: Any,
) -> RoutedClassifier:
    """What ``train_router`` makes of a config on the tiny pools, over the tiny sources or others."""
    if router is not None:
        opened = router.network, router.library
    module, library = tiny_sources(config) if opened is None else opened
    network = TaskNetwork(module, library.space)
    pools = {name: tiny_pool(seed) for seed, name in enumerate(("train", "validation"))}
    basis = library.basis.to(how.get("device", "cpu"))
    features = {name: SourceFeatures(network, basis, pool) for name, pool in pools.items()}
    return train_router(config, router=router, features=features, progress=False, **how)[0]


def predictions(classifier: RoutedClassifier, rule: Any = None) -> torch.Tensor:
    """Of four images on a support of three classes."""
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return classifier.adapt(images[:6], ["a", "b", "c"] * 2).predict_proba(images[6:], rule)


def reopened(classifier: RoutedClassifier, folder: Path, **options: Any) -> RoutedClassifier:
    """Saved and loaded; the tiny network is none that the registry can build."""
    return RoutedClassifier.load(classifier.save(folder), network=classifier.router.network, **options)


class TalkingTrainer(MetaTrainer):
    """Says every step, and stops for ever after one."""

    last: int

    def training_step(self) -> dict[str, float]:
        if self.step == self.last:
            print("waiting", flush=True)
            sys.stdin.read()
        return super().training_step()


if __name__ == "__main__":
    trainer = build_trainer(Path(sys.argv[1]))
    trainer.__class__ = TalkingTrainer
    trainer.last = int(sys.argv[2])  # type: ignore[attr-defined]
    trainer.fit(progress=False)
