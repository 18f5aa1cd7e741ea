"""Size and power of the posterior diagnostics, in worlds whose posterior is exact.

    python benchmarks/diagnostics.py                      # a minute or two on one core
    python benchmarks/diagnostics.py --repetitions 50     # the same table from fewer worlds
    python benchmarks/diagnostics.py --output runs/diagnostics.md

Every check meets the exact posterior (its rejections are the *size*, .05 asked for), a biased one, one that is
too sharp
(p^1.3, or 0.8 of the standard deviation) and one that has not looked at the data. Rates with 95 % Clopper-Pearson
intervals, T-hat with the share of its intervals that hold 1; then k-hat, which does not see sharpness, and seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from claims.finding import markdown, rate_interval

from pyro_smat.inference.diagnostics import (
    khat_per_episode,
    route_calibration,
    routing_sets,
    simulation_based_calibration,
)
from pyro_smat.inference.diagnostics.calibration import PosteriorCalibration, draws_calibration
from pyro_smat.models.finite_routes import FiniteRoutes

PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LAWS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
SHOTS = 5
EPISODES = (100, 400)
LEVEL = 0.05

Guide = Callable[[np.ndarray], np.ndarray]


def power_of(p: np.ndarray, power: float) -> np.ndarray:
    """p^power, normalised."""
    raised = p**power
    return raised / raised.sum(-1, keepdims=True)


GUIDES: dict[str, Guide] = {
    "exact": lambda p: p,
    "biased (Bayes under a uniform prior)": lambda p: power_of(p / PRIOR.numpy(), 1.0),
    "too sharp, p^1.3": lambda p: power_of(p, 1.3),
    "too sharp, p^2": lambda p: power_of(p, 2.0),
    "the prior itself": lambda p: np.broadcast_to(PRIOR.numpy(), p.shape),
}


@dataclass(frozen=True)
class Cell:
    """A check, a guide and a number of episodes over all repetitions."""

    check: str
    guide: str
    episodes: int
    results: tuple[PosteriorCalibration, ...]

    def row(self) -> dict[str, object]:
        """What the table says of it."""
        rejections = np.array([found.p_value < LEVEL for found in self.results])
        estimates = np.array([found.sharpness.estimate for found in self.results])
        by_quantity = {
            name: float(np.mean([found.p_values[name] < LEVEL for found in self.results]))
            for name in self.results[0].p_values
        }
        rate = rate_interval(int(rejections.sum()), len(rejections))
        seen = max(by_quantity, key=lambda name: by_quantity[name])
        return {
            "check": self.check,
            "guide": self.guide,
            "N": self.episodes,
            "rejected": rate.value,
            "rejected low": rate.low,
            "rejected high": rate.high,
            "best quantity": f"{seen} {by_quantity[seen]:.2f}".replace("|", "\\|"),
            "sharpness, median": float(np.median(estimates)),
            "interval holds 1": float(np.mean([found.sharpness.calibrated for found in self.results])),
        }


def log_likelihood(x: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """log p(x | A) ``(J, N)``."""
    return (coefficients.squeeze(1) @ LAWS.log())[:, x].sum(-1)


def simulated(guide: Guide, episodes: int, seed: int) -> PosteriorCalibration:
    """Simulation-based calibration of a guide on FiniteRoutes."""
    world = FiniteRoutes(PRIOR, LAWS)
    return simulation_based_calibration(
        lambda n, generator: world.draw(n, SHOTS, generator),
        lambda x: torch.tensor(guide(world.posterior(x).numpy())),
        num_simulations=episodes,
        log_likelihood=log_likelihood,
        seed=seed,
        power_repeats=0,
    )


def in_the_world(guide: Guide, episodes: int, seed: int) -> PosteriorCalibration:
    """Calibration against known routes, without any likelihood."""
    world = FiniteRoutes(PRIOR, LAWS)
    truth, x = world.draw(episodes, SHOTS, torch.Generator().manual_seed(seed))
    q = guide(world.posterior(x).numpy())
    return route_calibration(q, truth.numpy(), resamples=0, power_repeats=0, seed=seed).overall


def gaussian(deviation: float, shift: float, episodes: int, seed: int) -> PosteriorCalibration:
    """Draws: z ~ N(0, 1), y ~ N(z, 1), so that the posterior is N(y / 2, 1/2); ``shift`` in its deviations."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(episodes)
    y, scale = z + rng.standard_normal(episodes), 0.5**0.5
    draws = y / 2 + scale * (shift + deviation * rng.standard_normal((200, episodes)))
    log_q = -0.5 * (((draws - y / 2) / scale - shift) / deviation) ** 2
    of_truth = -0.5 * (((z - y / 2) / scale - shift) / deviation) ** 2
    return draws_calibration(
        {"z": draws, "log q": log_q}, {"z": z, "log q": of_truth}, population="", reference="model", seed=seed,
        power_repeats=0,
    )  # fmt: skip


def cells(repetitions: int, seed: int) -> Iterator[Cell]:
    """All of the table."""
    seeds = range(seed, seed + repetitions)
    for episodes in EPISODES:
        for name, guide in GUIDES.items():
            yield Cell("simulation", name, episodes, tuple(simulated(guide, episodes, s) for s in seeds))
        for name, guide in GUIDES.items():
            yield Cell("known routes", name, episodes, tuple(in_the_world(guide, episodes, s) for s in seeds))
        for name, (deviation, shift) in {
            "exact": (1.0, 0.0), "biased by 0.14 sd": (1.0, 0.14), "0.8 of the deviation": (0.8, 0.0),
        }.items():  # fmt: skip
            found = tuple(gaussian(deviation, shift, episodes, s) for s in seeds)
            yield Cell("draws", name, episodes, found)


def khat_table(seed: int) -> pd.DataFrame:
    """k-hat of Gaussian guides of a standard normal, 1,000 draws of 2,000 episodes, and how long it took."""
    rng, rows = np.random.default_rng(seed), []
    for deviation, shift in ((1.0, 0.0), (0.8, 0.0), (0.5, 0.0), (1.0, 1.5), (1.0, 4.0)):
        noise = rng.standard_normal((1000, 2000))
        u = shift + deviation * noise
        start = time.perf_counter()
        found = khat_per_episode(-0.5 * u**2, -0.5 * noise**2)
        rows.append(
            {
                "deviation": deviation,
                "shift": shift,
                "median k-hat": float(np.median(found.khat)),
                "reliable": float(found.reliable.mean()),
                "seconds": time.perf_counter() - start,
            }
        )
    return pd.DataFrame(rows)


def set_coverage(repetitions: int, seed: int) -> pd.DataFrame:
    """Coverage of conformal sets of routings, 200 episodes to calibrate and 200 to test."""
    world, rows = FiniteRoutes(PRIOR, LAWS), []
    for name, guide in GUIDES.items():
        covered, sizes = [], []
        for s in range(seed, seed + repetitions):
            truth, x = world.draw(400, SHOTS, torch.Generator().manual_seed(s))
            q, true = guide(world.posterior(x).numpy()), truth.numpy()
            sets = routing_sets(q[:200], true[:200], 0.9).sets(q[200:])
            covered.append(sets[np.arange(200), true[200:]].mean())
            sizes.append(sets.sum(1).mean())
        rows.append({"guide": name, "coverage (.9 asked)": np.mean(covered), "mean size of 4": np.mean(sizes)})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    tables = {
        f"Calibration, {args.repetitions} repetitions, level {LEVEL}": pd.DataFrame(
            [cell.row() for cell in cells(args.repetitions, args.seed)]
        ),
        "Conformal sets of routings": set_coverage(args.repetitions, args.seed),
        "k-hat, 1,000 draws of 2,000 episodes": khat_table(args.seed),
    }
    text = "\n\n".join(f"## {heading}\n\n{markdown(table)}" for heading, table in tables.items())
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
