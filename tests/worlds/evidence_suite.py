"""A tiny suite and tiny sources in the form of benchmarks/evidence, for tests of its tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(HERE / "evidence"), str(HERE / "data")]

from arrays import save_domain  # noqa: E402
from options import Options  # noqa: E402

from pyro_smat.networks.build import build_network  # noqa: E402

SPLITS = ("sources", "router", "validation", "test")
SHAPE = {"in_channels": 3, "channels": 8, "image_size": 64, "stem": "stride"}
IMAGES, CLASSES = 8, 4
GROUPS = {"emoji": "vendor", "glyph": "script"}


def made_options(folder: Path, seeds: tuple[int, ...] = (0,), **changes: Any) -> Options:
    """Options over four domains of coloured noise, in two groups each, and three sources of random weights."""
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    for number, (domain, splits) in enumerate(
        {"emoji": SPLITS, "glyph": SPLITS, "mnist": ("test",), "fashion": ("test",)}.items()
    ):
        write_domain(folder, domain, splits, number)
    for seed in seeds:
        (folder / "sources" / f"seed{seed}").mkdir(exist_ok=True)
        for number, name in enumerate(("imagenet", "emoji", "generalist")):
            generator = torch.Generator().manual_seed(10 * seed + number)
            network = build_network("conv4", generator=generator, **SHAPE)
            save_file(network.state_dict(), folder / "sources" / f"seed{seed}" / f"{name}.safetensors")
    tiny = {"shots": (1, 2), "way": 3, "shot": 2, "query": 2, "episodes": 6, "steps": 2, "batch": 10}
    paths = {"data": folder, "sources": folder / "sources", "network": {"kind": "conv4", **SHAPE}}
    names = {
        "names": ("imagenet", "emoji", "generalist"),
        "trained": ("emoji", "glyph"),
        "unseen": ("mnist", "fashion"),
    }
    return Options(**{**paths, **names, **tiny, **changes})


def write_domain(folder: Path, domain: str, splits: tuple[str, ...], seed: int) -> None:
    """Classes have a mean colour of their own."""
    generator = torch.Generator().manual_seed(seed)
    count = CLASSES * len(splits)
    colours = torch.rand(count, 1, 3, 1, 1, generator=generator)
    images = 0.6 * colours + 0.4 * torch.rand(count, IMAGES, 3, 64, 64, generator=generator)
    classes = torch.arange(count).repeat_interleave(IMAGES)
    vendors = (torch.arange(IMAGES) % 2).repeat(count)
    step = CLASSES * IMAGES
    said = {
        "domain": domain,
        "attributes": ["class", GROUPS.get(domain, "style")],
        "class_names": [[f"{domain}{k}" for k in range(count)], ["x", "y"]],
        "rows": {split: (k * step, (k + 1) * step) for k, split in enumerate(splits)},
    }
    pixels = (255 * images).byte().flatten(0, 1).contiguous()
    save_domain(folder / f"{domain}.safetensors", pixels, torch.stack([classes, vendors], 1), said)
