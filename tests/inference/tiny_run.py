"""A meta-training run of a second, for the tests of resuming; also a program that can be killed.

``python tiny_run.py FOLDER STEP`` trains into FOLDER, says so after every step, and waits for ever after STEP.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from pyro_smat.composition import TaskNetwork
from pyro_smat.data.pool import ImagePool
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.experts import ExpertBank
from pyro_smat.features import SourceFeatures
from pyro_smat.guides import CatalogGuide, LogisticNormalGuide, RoutingGuide
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.sources import SourceReference
from pyro_smat.inference.trainer import MetaTrainer, TrainingSettings
from pyro_smat.local_module import LocalModule
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import CatalogPrior, LogisticNormalPrior
from pyro_smat.parameters import ParameterSpace
from pyro_smat.routing import Catalog
from pyro_smat.sampler import EpisodeSampler, SupportCorruption
from pyro_smat.sources import SourceLibrary

STEPS = 10
CHECKPOINT_EVERY = 3
VALIDATE_EVERY = 4


def tiny_pool() -> ImagePool:
    """540 images of 2 x 2 pixels: six colours (upper row) times six shapes (lower row), with noise."""
    cells = torch.tensor([cell for cell in itertools.product(range(6), range(6)) for _ in range(15)])
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(2, 6, 2, generator=generator)
    pixels = torch.stack([means[0][cells[:, 0]], means[1][cells[:, 1]]], 1).unsqueeze(1)
    noisy = (pixels + 0.05 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    return ImagePool(
        images=(noisy * 255).to(torch.uint8),
        labels=cells,
        attributes=("colour", "shape"),
        class_names=(tuple(f"colour{i}" for i in range(6)), tuple(f"shape{i}" for i in range(6))),
        domain=torch.zeros(len(cells), dtype=torch.long),
    )


def build_trainer(folder: Path | None, family: str = "logistic_normal", **changed: Any) -> MetaTrainer:
    """New objects every time, always the same; ``changed`` are settings of the trainer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh())
    space = ParameterSpace.from_module(network)
    library = SourceLibrary(("a", "b", "c"), torch.randn(3, space.dim), space)
    tasks, pool = TaskNetwork(network, space), tiny_pool()
    bank = ExpertBank(space, 2, 0.6, delta_scale=0.3)
    prior: LocalModule
    guide: RoutingGuide
    if family == "catalog":
        catalog = Catalog.k_hot(library.names, 2)
        prior, guide = CatalogPrior(catalog), CatalogGuide(catalog, 3, hidden=8)
    else:
        prior, guide = LogisticNormalPrior(3, 2), LogisticNormalGuide(3, 2, hidden=8)
    features = SourceFeatures(tasks, library.basis, pool)
    noise = SupportCorruption(label_noise=0.3, label_noise_probability=0.5)
    sampler = EpisodeSampler(pool, (2, 4), (2, 3), 2, corruption=noise, seed=1)
    held_out = EpisodeSampler(pool, 3, 2, 2, seed=2)
    validation: list[EpisodeBatch] = [features.attach(held_out.sample(4))]
    elbo = CVaR_ELBO(
        rho=0.5,
        num_particles=2,
        vectorize_particles=True,
        episode_loss="mean_nll",
        reference=SourceReference(features, episode_loss="mean_nll"),
    )
    settings = {"steps": STEPS, "episodes": 10, "warmup": 2, "checkpoint_every": CHECKPOINT_EVERY}
    return MetaTrainer(
        RoutedModel(tasks, library, prior, bank),
        guide,
        elbo,
        sampler,
        features,
        TrainingSettings(**{**settings, "validate_every": VALIDATE_EVERY, **changed}),
        validation=validation,
        folder=folder,
    )


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
