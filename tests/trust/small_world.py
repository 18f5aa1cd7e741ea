"""A small world on disk: class folders of stripes, two checkpoints of a small Conv-4, and the config of a run of it.

``write_world(folder)`` writes images/<split>/<class>/*.png, base and other.safetensors, and config.toml.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.networks import build_network

NETWORK = {"channels": 4, "image_size": 16}
CONFIG = """
[data]
kind = "folder"
path = "images"
size = 16
channels = 1

[episodes]
way = 3
shot = 3
query = 2

[sources]
network = {kind = "conv4", channels = 4, image_size = 16}
files = {base = "base.safetensors", other = "other.safetensors"}

[experts]
count = 2

[objective]
rho = 1.0

[training]
steps = 4
episodes = 4
validate_every = 2
validation_episodes = 4
checkpoint_every = 1
"""


def write_images(folder: Path, classes: int = 5, each: int = 8, seed: int = 0, size: int = 16) -> None:
    """Class folders of noisy stripes: the class is the angle."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    for k in range(classes):
        place = folder / f"stripe{k}"
        place.mkdir(parents=True)
        angle = np.pi * k / classes
        for n in range(each):
            wave = np.sin(x * np.cos(angle) + y * np.sin(angle) + generator.uniform(0, 6))
            noisy = 127 + 80 * (wave + 0.3 * generator.standard_normal(x.shape))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(place / f"{n}.png")


def write_world(folder: Path) -> Path:
    """Write everything; returns the path of the config."""
    for seed, split in enumerate(("train", "validation", "test")):
        write_images(folder / "images" / split, seed=seed)
    for seed, name in enumerate(("base", "other")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_file(dict(build_network("conv4", **NETWORK).state_dict()), folder / f"{name}.safetensors")
    config = folder / "config.toml"
    config.write_text(CONFIG)
    return config


def classifier_of(config: Path, *overrides: str, cache_size: int = 8) -> RoutedClassifier:
    """A router with its initial weights."""
    return RoutedClassifier(build_router(load_config(config, overrides)), cache_size=cache_size)


def task_of(seed: int, way: int = 3, shot: int = 3, queries: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Support ``(S, 1, 16, 16)``, its labels, and queries of a task of random images, always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(way).repeat_interleave(shot)
    means = torch.rand(way, 1, 16, 16, generator=generator, dtype=torch.float32)
    support = means[labels] + 0.1 * torch.rand(way * shot, 1, 16, 16, generator=generator, dtype=torch.float32)
    return (support / 1.1), labels, torch.rand(queries, 1, 16, 16, generator=generator, dtype=torch.float32)
