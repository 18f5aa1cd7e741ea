"""Real images: MobileNetV2 fine-tuned on each emoji vendor, routed per task; prints the table of docs/results.md.

    python benchmarks/data/prepare.py all --out data
    python benchmarks/real_images.py --output runs/emoji

First it fine-tunes the ImageNet network on every other training sub-category of each vendor (data/sources/, skipped
where there): the router must also meet classes that the sources were not fitted to, or it learns to trust
them too much. Then it meta-trains the router of benchmarks/emoji.toml, and evaluates on sub-categories that nothing was
trained on, with clean and mislabelled supports, and on Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.evaluation.baselines import BEST_BY_SUPPORT, ORACLE
from pyro_smat.inference.evaluation.router import evaluate_router
from pyro_smat.inference.runs.evaluate import write_evaluation
from pyro_smat.inference.runs.folder import prepare_folder
from pyro_smat.inference.runs.train import train_router
from pyro_smat.metrics.intervals import episode_interval
from pyro_smat.metrics.risk import cvar
from pyro_smat.networks import build_network
from pyro_smat.sources import load_weights
from pyro_smat.sources.pretraining import mirror, pretrain

HERE = Path(__file__).parent
VENDORS = ("google", "twitter", "fluent")
METHODS = {
    "posterior_predictive": "routed, posterior predictive",
    "mean": "routed, posterior mean",
    "map": "routed, MAP",
    "uniform_mixing": "uniform mixing",
    "fallback": "ImageNet (source 0)",
    "average of all sources": "average of all sources",
    "average of all sources, weighted by support loss": "average of all sources, weighted by support loss",
    BEST_BY_SUPPORT: BEST_BY_SUPPORT,
    ORACLE: "the vendor's own source",
}


def finetune(data: Path, device: torch.device, steps: int, seed: int) -> None:
    """One source a vendor, from the ImageNet network."""
    start = load_weights(data / "weights" / "mobilenet_v2.safetensors")
    for number, vendor in enumerate(VENDORS):
        path = data / "sources" / f"{vendor}.safetensors"
        if path.exists():
            continue
        network = build_network("mobilenet_v2")
        network.load_state_dict(start)
        pool = read_folder(data / "emoji" / "train", size=96, channels=3)
        sampler = EpisodeSampler(pool, 8, 5, 5, domains=[vendor], classes=pool.class_names[0][::2], seed=seed + number)
        pretrain(
            network,
            sampler,
            steps,
            learning_rate=1e-5,
            augment=mirror,
            seed=seed,
            device=device,
            bfloat16=device.type == "cuda",
            progress=f"fine-tuning on {vendor}",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--finetune-steps", type=int, default=100)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    data = HERE.parent / "data"
    config = load_config(HERE / "emoji.toml", arguments.overrides)

    started = time.perf_counter()
    finetune(data, device, arguments.finetune_steps, config.seed)
    finetuned = time.perf_counter()
    prepare_folder(arguments.output, config, replace=True)
    classifier, _ = train_router(config, device, folder=arguments.output)
    trained = time.perf_counter()

    test = read_folder(data / "emoji" / "test", size=config.data.size, channels=3)
    fashion = read_folder(data / "fashion-mnist", size=config.data.size, channels=3)
    noisy: CorruptionLike = {"kind": "label_noise", "fraction": 0.4}
    columns: dict[str, tuple[ImagePool, tuple[CorruptionLike, ...]]] = {
        "new sub-categories, clean": (test, ()),
        "new sub-categories, 40% mislabelled": (test, (noisy,)),
        "Fashion-MNIST, clean": (fashion, ()),
        "Fashion-MNIST, 40% mislabelled": (fashion, (noisy,)),
    }
    features = {id(pool): classifier.router.features(pool, progress=True) for pool in (test, fashion)}
    results = {}
    for name, (pool, corruptions) in columns.items():
        evaluation = evaluate_router(
            classifier, pool, corruptions=corruptions, episodes=arguments.episodes, features=features[id(pool)]
        )
        folder = arguments.output / "evaluations" / name.replace(" ", "-").replace(",", "").replace("%", "")
        write_evaluation(folder, classifier, evaluation)
        results[name] = evaluation
    finished = time.perf_counter()

    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"\n{where}, torch {torch.__version__}, seed {config.seed}, {arguments.episodes} episodes a column")
    print(
        f"fine-tuning {finetuned - started:.0f} s, meta-training {trained - finetuned:.0f} s "
        f"({config.training.steps} steps of {config.training.episodes} episodes), "
        f"evaluation {finished - trained:.0f} s\n"
    )
    print("| accuracy %, 95% interval | " + " | ".join(results) + " |")
    print("|---|" + "---|" * len(results))
    for method, label in METHODS.items():
        cells = []
        for evaluation in results.values():
            if method not in evaluation.methods:
                cells.append("-")
                continue
            interval = episode_interval(100 * evaluation.accuracy(method))
            cells.append(f"{interval.value:.1f} ± {(interval.high - interval.low) / 2:.1f}")
        print(f"| {label} | " + " | ".join(cells) + " |")
    print("\n| CVaR 0.1 of the loss / of the regret, nats | " + " | ".join(results) + " |")
    print("|---|" + "---|" * len(results))
    for method, label in METHODS.items():
        cells = [
            f"{tail(e.loss(method)):.2f} / {tail(e.regret(method)):.2f}" if method in e.methods else "-"
            for e in results.values()
        ]
        print(f"| {label} | " + " | ".join(cells) + " |")
    print("\nmisrouted: " + json.dumps({name: round(e.misrouting_rate(), 3) for name, e in results.items()}))


def tail(losses: object) -> float:
    """CVaR 0.1."""
    return cvar(torch.as_tensor(losses), 0.1).item()


if __name__ == "__main__":
    main()
