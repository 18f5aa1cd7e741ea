"""A tiny world on disk for the tests of runs: class folders, two checkpoints of a small Conv-4, and a config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from pyro_smat.networks import build_network

NETWORK = {"network": "conv4", "channels": 4, "image_size": 16}
CONFIG = """
[data]
kind = "folder"
path = "images"
size = 16
channels = 1
train = "train"
validation = "val"
test = "test"

[episodes]
way = 3
shot = 3
query = 2

[[episodes.corruptions]]
kind = "label_noise"
fraction = 0.2

[sources]
network = {kind = "conv4", channels = 4, image_size = 16}
files = {base = "base.safetensors", other = "other.pt"}

[experts]
count = 2

[objective]
rho = 1.0

[training]
steps = 4
episodes = 4
validate_every = 2
validation_episodes = 4
checkpoint_every = 2
"""


def make_images(folder: Path, classes: int, each: int, seed: int, size: int = 16) -> None:
    """Class folders of noisy stripes: the class is the angle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    for k in range(classes):
        angle = np.pi * k / classes
        place = folder / f"stripe{k}"
        place.mkdir(parents=True)
        for n in range(each):
            wave = np.sin(x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 6)) + 0.3 * rng.standard_normal(
                x.shape
            )
            pixels = np.clip(127 + 80 * wave, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{n}.png")


def make_world(folder: Path) -> Path:
    """Write everything; returns the path of the config."""
    for seed, split in enumerate(("train", "val", "test")):
        make_images(folder / "images" / split, 5, 8, seed)
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(build_network(**NETWORK).state_dict())
    save_file(dict(states[0]), folder / "base.safetensors")
    torch.save(dict(states[1]), folder / "other.pt")
    config = folder / "config.toml"
    config.write_text(CONFIG)
    return config
