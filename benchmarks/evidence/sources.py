"""Sources of the suite: MobileNetV2 fine-tuned from ImageNet on the "sources" classes of each trained domain.

    python benchmarks/evidence/data.py --out data/suite
    python benchmarks/evidence/sources.py --data data/suite --out data/suite/sources --seed 0

Writes ``OUT/seed0/{imagenet,emoji,glyph,texture,clipart,generalist}.safetensors`` in float16: ImageNet's own weights,
four specialists and a generalist that saw the classes of all four. The router is trained on other classes
(``splits/*.json``). A file that is there is left alone, so that a run that was killed goes on where it was. About three
minutes a seed on an H200; most of an hour on two CPU cores with ``--steps 30``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from suite import GENERALIST, SOURCES, TRAINED, load_split

from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.networks import build_network
from pyro_smat.sources import load_weights
from pyro_smat.sources.pretraining import mirror, pretrain

WAY, SHOT, QUERY = 8, 5, 5


def make_sources(
    data: Path, out: Path, *, seed: int, steps: int, learning_rate: float, device: torch.device
) -> dict[str, Path]:
    """The checkpoints of one seed, by name."""
    start = load_weights(data / "mobilenet_v2.safetensors")
    paths = {name: out / f"seed{seed}" / f"{name}.safetensors" for name in SOURCES}
    for number, (name, path) in enumerate(paths.items()):
        if path.exists():
            continue
        began = time.perf_counter()
        network = build_network("mobilenet_v2")
        network.load_state_dict(start)
        if name != "imagenet":
            domains = TRAINED if name == GENERALIST else (name,)
            pool = load_split(data, "sources", domains)
            pretrain(
                network,
                EpisodeSampler(pool, WAY, SHOT, QUERY, seed=100 * seed + number, skip_small_classes=True),
                steps * len(domains),
                learning_rate=learning_rate,
                augment=mirror,
                seed=100 * seed + number,
                device=device,
                bfloat16=device.type == "cuda",
                progress=f"fine-tuning {name}",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
        save_file({k: v.half() if v.is_floating_point() else v for k, v in weights.items()}, path)
        print(f"{path}: {time.perf_counter() - began:.0f} s", flush=True)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/suite"))
    parser.add_argument("--out", type=Path, default=Path("data/suite/sources"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=300, help="of a specialist; the generalist takes four times as many"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    make_sources(
        arguments.data,
        arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        device=choose_device(arguments.device),
    )


if __name__ == "__main__":
    main()
