"""Variational routing of experts on real multiple-choice questions, beside honest baselines; one seed a call.

    python benchmarks/moe/prepare.py --out data/moe
    python benchmarks/moe/run.py --data data/moe --out runs/moe --seed 0        # one GPU; stops in time, goes on later
    python benchmarks/moe/table.py runs/moe

Stage 1 trains the whole network (kept in --state for the next call), stage 2 only the routers' heads, an arm at a time.
Each arm writes ``seed-arm.json`` and probabilities; arms that are there are skipped. On a CPU:
``--layers 2 --experts 4 --train 512 --limit 256 --epochs 1 --head-epochs 1 --trajectories 3 --batch 64``.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from pathlib import Path

import numpy as np
import torch
from arms import ARMS, Settings
from batches import load_questions
from evaluate import evaluate
from pretrain import pretrain

from pyro_smat.moe import attach

SETS = ("validation", "test", "verbs", "adjectives", "packages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/moe"))
    parser.add_argument("--out", type=Path, default=Path("runs/moe"))
    parser.add_argument("--state", type=Path, help="where the trained network is kept between calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", help="comma-separated names; default all")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new arm after so many")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--train", type=int, help="training questions; default all")
    parser.add_argument("--limit", type=int, help="questions of every other set; default all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--head-epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--network-rate", type=float, default=1e-4, help="learning rate of stage 1")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the heads")
    parser.add_argument("--trunk", type=int, default=64)
    parser.add_argument("--trajectories", type=int, default=20)
    parser.add_argument("--samples", type=int, default=35)
    parser.add_argument("--members", type=int, default=5)
    options = parser.parse_args()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = list(ARMS) if options.arms is None else options.arms.split(",")
    if unknown := [name for name in names if name not in ARMS]:
        parser.error(f"no arms called {unknown}; expected some of {list(ARMS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / f"{options.seed}-{re.sub(r'[^a-z0-9.]+', '-', name.lower())}.json" for name in names}
    open_arms = [name for name in names if not files[name].exists()]
    if not open_arms:
        print("every arm is there")
        return
    questions = options.data / "questions.npz"
    train = load_questions(questions, "train", device, options.train)
    sets = {name: load_questions(questions, name, device, options.limit) for name in SETS}
    network = pretrain(
        options.data / "minilm.npz", train, seed=options.seed, layers=options.layers, num_experts=options.experts,
        epochs=options.epochs, batch=options.batch, rate=options.network_rate, state=options.state,
    )  # fmt: skip
    print(f"stage 1: {time.perf_counter() - start:.0f} s", flush=True)
    attachment = attach(network)
    settings = Settings(
        options.seed, options.head_epochs, options.batch, options.rate, options.trunk, options.trajectories,
        options.samples, options.members,
    )  # fmt: skip
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    for name in open_arms:
        if time.perf_counter() - start > 60 * options.minutes:
            print(f"out of time; call again for {[n for n in open_arms if not files[n].exists()]}")
            return
        begun = time.perf_counter()
        arm = ARMS[name](attachment, train, sets["validation"], settings)
        fitted = time.perf_counter() - begun
        report, kept = evaluate(attachment, arm, sets, settings)
        seconds = {"fit": fitted, "evaluate": time.perf_counter() - begun - fitted}
        described = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        described["minutes"] = None
        report |= {"arm": name, "seed": options.seed, "machine": machine, "seconds": seconds, "options": described}
        np.savez_compressed(files[name].with_suffix(".npz"), labels=sets["test"].labels.cpu().numpy(), **kept)
        files[name].write_text(json.dumps(report, indent=1))
        best = {
            w: f"{r['test']['raw']['nll']:.3f}/{r['test']['tempered']['nll']:.3f}" for w, r in report["ways"].items()
        }
        print(f"{name}: {seconds['fit']:.0f} + {seconds['evaluate']:.0f} s, test NLL raw/tempered {best}", flush=True)


if __name__ == "__main__":
    main()
