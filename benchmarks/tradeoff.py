"""Mean accuracy against tail regret on the built-in glyphs, over kappa and rho, for catalog, logistic-normal and point
routing.

    python benchmarks/tradeoff.py --output runs/tradeoff              # an hour and more on a CPU
    python benchmarks/tradeoff.py --device cuda --processes 8         # minutes on a GPU

Every run trains on clean, mislabelled and confounded supports and is evaluated on letters of alphabets that it has
never seen (split "ood"), a third of the episodes each clean, confounded and 40% mislabelled. Writes tradeoff.csv and
tradeoff.png.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.multiprocessing as mp
from tqdm.auto import tqdm

from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.inference.assembly.config import RunConfig, load_config
from pyro_smat.inference.assembly.router import build_router, choose_device
from pyro_smat.inference.evaluation.router import evaluate_router
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import train_router
from pyro_smat.metrics.risk import cvar

# and the rule that is deployed
FAMILIES = {"catalog": "posterior_predictive", "logistic_normal": "posterior_predictive", "point": "mean"}
KAPPAS = (0.5, 1.0)
RHOS = (0.5, 0.2, 0.1)
CONDITIONS: tuple[tuple[CorruptionLike, ...], ...] = (
    (),
    ({"kind": "confounding", "probability": 1.0},),
    ({"kind": "label_noise", "fraction": 0.4},),
)
BEST = "best source by support loss"

Job = tuple[str, float, float, int]


def jobs(seeds: int) -> Iterator[Job]:
    """(family, kappa, rho, seed); kappa = 0 is mean training, whatever rho is."""
    settings = [(0.0, 1.0), *itertools.product(KAPPAS, RHOS)]
    return ((family, *setting, seed) for seed in range(seeds) for family in FAMILIES for setting in settings)


def config_of(job: Job, steps: int, episodes: int) -> RunConfig:
    """The quickstart's config with the family and the objective of a job."""
    family, kappa, rho, seed = job
    point = ["objective.episode_loss=mean_nll"] if family == "point" else []
    return load_config(
        Path(str(files("pyro_smat.cli") / "quickstart.toml")),
        [
            f"seed={seed}",
            f"guide.kind={family}",
            f"objective.tail_weight={kappa}",
            f"objective.rho={rho}",
            f"training.steps={steps}",
            f"training.episodes={episodes}",
            "objective.threshold=queue",  # 16 episodes hold no tenth
            "training.validate_every=0",
            "training.precision=float32",
            f"decision.rule={FAMILIES[family]}",
            *(["objective.num_particles=4"] if family == "logistic_normal" else []),
            *point,
        ],
    )


def run(arguments: tuple[Job, int, int, int, str]) -> dict[str, float | str]:
    """Train and evaluate one job; a row of the table."""
    job, steps, batch, count, device_name = arguments
    torch.set_num_threads(1)
    device = choose_device(device_name)
    started = time.perf_counter()
    config = config_of(job, steps, batch)
    router = build_router(config, device)
    classifier, history = train_router(config, device, router=router, progress=False)
    trained = time.perf_counter() - started
    pool = build_pool(config, "ood")
    features = classifier.router.features(pool)
    rule = FAMILIES[job[0]]
    accuracy, regret, best_accuracy, best_regret = [], [], [], []
    for corruptions in CONDITIONS:
        found = evaluate_router(
            classifier, pool, corruptions=corruptions, episodes=count // 3, seed=77, features=features, progress=False
        )
        accuracy.append(found.accuracy(rule))
        regret.append(found.regret(rule))
        best_accuracy.append(found.accuracy(BEST))
        best_regret.append(found.regret(BEST))

    def tail(values: list[np.ndarray]) -> float:
        return cvar(torch.from_numpy(np.concatenate(values)), 0.1).item()

    last = history.tail(20)
    return {
        **dict(zip(("family", "kappa", "rho", "seed"), job, strict=True)),
        "accuracy": 100 * float(np.concatenate(accuracy).mean()),
        "tail_regret": tail(regret),
        "best_by_support_accuracy": 100 * float(np.concatenate(best_accuracy).mean()),
        "best_by_support_tail_regret": tail(best_regret),
        "entropy": float(last.entropy.mean()),
        "variance": float(last.variance.mean()),
        "mutual_information": float(last.mutual_information.mean()),
        "seconds": trained,
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel for each family: mean over seeds with one standard error; one line a kappa, its points labelled rho."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(FAMILIES), figsize=(11, 3.8), layout="constrained")
    for axes, family in zip(panels, FAMILIES, strict=True):
        part = table[table.family == family].groupby(["kappa", "rho"])[["accuracy", "tail_regret"]]
        mean, error = part.mean(), part.sem().fillna(0.0)
        for kappa in sorted(set(table.kappa)):
            points, bars = mean.loc[kappa], error.loc[kappa]
            label = f"kappa {kappa:g}" if kappa else "mean training"
            style = "o-" if kappa else "ks"
            axes.errorbar(
                points.tail_regret, points.accuracy, bars.accuracy, bars.tail_regret, fmt=style, capsize=2, label=label
            )
            for rho, row in points.iterrows():
                if kappa:
                    place = (row.tail_regret, row.accuracy)
                    axes.annotate(f"rho {rho:g}", place, textcoords="offset points", xytext=(5, -10), fontsize=7)
        axes.set(title=family.replace("_", "-"), xlabel="tail regret (CVaR 0.1), nats")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean accuracy, %")
    panels[0].legend(fontsize=8)
    best = table[["best_by_support_accuracy", "best_by_support_tail_regret"]].mean()
    figure.suptitle(f"{BEST}: accuracy {best.iloc[0]:.1f}%, tail regret {best.iloc[1]:.2f}", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tradeoff"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="episodes a step")
    parser.add_argument("--episodes", type=int, default=300, help="episodes of the evaluation")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "ood"):
        build_pool(config_of(("point", 0.0, 1.0, 0), 1, 1), split)  # drawn once, then read by every process
    todo = [
        (job, arguments.steps, arguments.batch, arguments.episodes, arguments.device) for job in jobs(arguments.seeds)
    ]
    rows = []
    with mp.get_context("spawn").Pool(arguments.processes) as pool:
        for row in tqdm(pool.imap_unordered(run, todo), total=len(todo), unit="run"):
            rows.append(row)
            pd.DataFrame(rows).to_csv(arguments.output / "tradeoff.csv", index=False)
    table = pd.DataFrame(rows).sort_values(["family", "kappa", "rho", "seed"])
    table.to_csv(arguments.output / "tradeoff.csv", index=False)
    draw(table, arguments.output / "tradeoff.png")
    columns = ["accuracy", "tail_regret", "entropy", "mutual_information", "seconds"]
    print(table.groupby(["family", "kappa", "rho"])[columns].mean().round(3).to_string())
    best = table[["best_by_support_accuracy", "best_by_support_tail_regret"]].mean()
    print(f"{BEST}: accuracy {best.iloc[0]:.1f}, tail regret {best.iloc[1]:.3f}")


if __name__ == "__main__":
    main()
