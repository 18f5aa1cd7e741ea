"""Does a trained router go on concentrating with more shots? The quickstart's router, retrained several ways.

    python benchmarks/concentration.py --output runs/concentration.md

Trained at 5 shots, or at 1 to 8; with the evidence of the support as means over shots only, or with its sum over shots
as well (``encoder = {kind = "evidence", total = true}``); on corrupted or on clean episodes; and with two weights of
the KL, for which the optimum of the objective is known (a Gibbs posterior). Then all meet the same clean test episodes
at growing prefixes of their supports: 1 - q(true source), beside that of the support posterior (prior x leave-one-out
likelihood of the frozen sources), which adds evidence up. Smaller than the quickstart: no experts, fewer steps.
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
from pyro_smat.inference.objective.candidates import candidate_losses
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import train_router

GIBBS = ("objective.episode_loss=mean_nll", "objective.tail_weight=0.0", "objective.reference=none")
TOTAL = 'guide.encoder={kind="evidence", total=true}'
CLEAN = "episodes.corruptions=[]"
CASES: dict[str, list[str]] = {
    "quickstart's (5 shots)": [],
    "with the total": [TOTAL],
    "at 1 to 8 shots": ["episodes.shot=[1, 8]"],
    "at 1 to 8 shots, with the total": ["episodes.shot=[1, 8]", TOTAL],
    "clean episodes": [CLEAN],
    "clean episodes, with the total": [CLEAN, TOTAL],
    "mean NLL, kl_weight .2": [CLEAN, TOTAL, *GIBBS, "objective.kl_weight=0.2"],
    "mean NLL, kl_weight .05": [CLEAN, TOTAL, *GIBBS, "objective.kl_weight=0.05"],
}
SHOTS = (1, 2, 3, 5, 8, 12)
SEED = 77
OVERRIDES = (
    "experts.count=0",
    "training.validate_every=1000",
    "training.validation_episodes=32",
    "decision.rule=mean",
    "decision.score=entropy",
)


def held_out(router: Router, episodes: int, size: int = 20) -> tuple[list[EpisodeBatch], np.ndarray]:
    """Clean test episodes with as many shots as the largest prefix, and the source that knows each."""
    pool = build_pool(router.config, "test")
    settings = router.config.replaced(episodes={"shot": max(SHOTS), "query": 5, "corruptions": ()}).episodes
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
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    toml = Path(quickstart_run.__file__).with_name("quickstart.toml")
    rows: dict[str, dict[str, str]] = {}
    plain = build_router(load_config(toml, OVERRIDES))  # the sources are frozen: one pass over the images for all runs
    features = {split: plain.features(build_pool(plain.config, split)) for split in ("train", "validation")}
    batches, truth = held_out(plain, arguments.episodes)
    rows["support posterior"] = support_posterior(plain, batches, truth)
    print(rows, flush=True)
    for name in arguments.cases or CASES:
        means, errors, exponents, weights, floors = [], [], [], [], []
        started = time.perf_counter()
        for seed in range(arguments.seeds):
            config = load_config(toml, [*OVERRIDES, f"training.steps={arguments.steps}", f"seed={seed}", *CASES[name]])
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
            weights += [v.item() for key, v in parameters if key.endswith("trust_in_total")]
            if config.objective.episode_loss.kind == "mean_nll":
                floors.append(gibbs_doubt(router, batches, truth, config.objective.kl_weight))
        rows[name] = row(np.mean(means, 0), np.mean(errors, 0)) | {
            "exponent": "; ".join(exponents),
            "weight of the total": "; ".join(f"{w:.3f}" for w in weights),
            "optimum, route known": "; ".join(f"{f:.4f}" for f in floors),
        }
        print(f"{name}: {rows[name]} ({time.perf_counter() - started:.0f} s)", flush=True)
    text = markdown(pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("router").reset_index())
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


@torch.no_grad()
def gibbs_doubt(router: Router, batches: list[EpisodeBatch], truth: np.ndarray, kl_weight: float) -> float:
    """1 - q(true) where training would stop with the route known: q* proportional to p exp(-E[query loss] / lambda)."""
    rows = router.guide.catalog.coefficients
    losses = torch.cat([candidate_losses(router.model, with_shots(batch, 5), rows) for batch in batches], 1).T.numpy()
    doubts = []
    for source in np.unique(truth):
        expected = losses[truth == source].mean(0)
        q = np.exp(-(expected - expected.min()) / kl_weight)
        doubts += [1 - q[source] / q.sum()] * int((truth == source).sum())
    return float(np.mean(doubts))


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
