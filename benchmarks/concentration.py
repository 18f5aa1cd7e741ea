"""Does a trained router go on concentrating with more shots? The quickstart's router, retrained four ways.

    python benchmarks/concentration.py --output runs/concentration.md

Trained at 5 shots, or at 1 to 8; with the evidence of the support as means over shots only, or with its sum over
shots as well (``encoder = {kind = "evidence", total = true}``). Then all meet the same clean test episodes at growing
prefixes of their supports: 1 - q(true source), beside that of the support posterior (prior x leave-one-out
likelihood of the frozen sources), which adds evidence up and does not know when it is wrong. Smaller than the
quickstart: no experts, fewer steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from claims.finding import markdown

from pyro_smat.cli import quickstart_run
from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import Router, build_router
from pyro_smat.inference.diagnostics import concentration_over_shots, enumerated_posterior
from pyro_smat.inference.diagnostics.batches import with_shots
from pyro_smat.inference.evaluation.router import sources_of_routes
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import train_router

SHOTS = (1, 2, 3, 5, 8, 12)
SEED = 77
OVERRIDES = (
    "experts.count=0",
    "training.validate_every=1000",
    "training.validation_episodes=32",
    "decision.rule=mean",
    "decision.score=entropy",
)


def test_batches(router: Router, episodes: int, size: int = 20) -> tuple[list[EpisodeBatch], np.ndarray]:
    """Clean test episodes with as many shots as the largest prefix, and the source that knows each."""
    pool = build_pool(router.config, "test")
    settings = router.config.replaced(episodes={"shot": max(SHOTS), "query": 1, "corruptions": ()}).episodes
    sampler, features = settings.sampler(pool, seed=SEED), router.features(pool)
    batches = [features.attach(sampler.sample(size)) for _ in range(episodes // size)]
    known = np.array(sources_of_routes(pool, router.library))
    return batches, np.concatenate([known[batch.route.numpy()] for batch in batches])


def main() -> None:
    """Train, look, print."""
    parser = argparse.ArgumentParser(description="concentration of trained routers over shots")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    toml = Path(quickstart_run.__file__).with_name("quickstart.toml")
    rows: dict[str, dict[str, str]] = {}
    plain = build_router(load_config(toml, OVERRIDES))  # the sources are frozen: one pass over the images for all runs
    features = {split: plain.features(build_pool(plain.config, split)) for split in ("train", "validation")}
    batches, truth = test_batches(plain, arguments.episodes)
    rows["support posterior"] = support_posterior(plain, batches, truth)
    print(rows, flush=True)
    for shot in ("5", "[1, 8]"):
        for total in (False, True):
            means, errors, exponents, weights = [], [], [], []
            started = time.perf_counter()
            for seed in range(arguments.seeds):
                overrides = [*OVERRIDES, f"training.steps={arguments.steps}", f"episodes.shot={shot}", f"seed={seed}"]
                encoder = f'guide.encoder={{kind="evidence", total={str(total).lower()}}}'
                config = load_config(toml, [*overrides, encoder])
                classifier, _ = train_router(config, features=features, progress=False)
                router = classifier.router
                prior = np.full(len(router.library), 1 / len(router.library))
                found = concentration_over_shots(
                    router.model.prior, router.guide, batches, SHOTS, prior_probabilities=prior, truth=truth
                )
                assert found.doubt is not None
                assert found.error is not None
                means.append(found.doubt.mean(1))
                errors.append(found.error)
                exponents.append(str(found.exponent))
                parameters = router.guide.named_parameters()
                weights += [v.item() for name, v in parameters if name.endswith("trust_in_total")]
            name = f"trained at {shot} shots, {'with' if total else 'without'} the total"
            rows[name] = row(np.mean(means, 0), np.mean(errors, 0)) | {
                "exponent": "; ".join(exponents),
                "weight of the total": "; ".join(f"{w:.3f}" for w in weights),
            }
            print(f"{name}: {rows[name]} ({time.perf_counter() - started:.0f} s)", flush=True)
    text = markdown(pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("router").reset_index())
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


@torch.no_grad()
def support_posterior(router: Router, batches: list[EpisodeBatch], truth: np.ndarray) -> dict[str, str]:
    """The same numbers of prior x leave-one-out likelihood; one shot leaves a class no prototype."""
    means, errors = [], []
    for shots in SHOTS:
        if shots < 2:
            means.append(np.nan)
            errors.append(np.nan)
            continue
        q = np.concatenate(
            [enumerated_posterior(router.model, with_shots(batch, shots), "support").weights for batch in batches]
        )
        means.append(float((1 - q[np.arange(len(q)), truth]).mean()))
        errors.append(float((q.argmax(1) != truth).mean()))
    return row(np.array(means), np.array(errors))


def row(doubt: np.ndarray, error: np.ndarray) -> dict[str, str]:
    """1 - q(true) and, in brackets, the share of episodes with another source on top."""
    return {f"{n} shots": f"{d:.4f} ({e:.3f})" for n, d, e in zip(SHOTS, doubt, error, strict=True)}


if __name__ == "__main__":
    main()
