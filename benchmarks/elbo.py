"""What CVaR_ELBO costs: one training step against Pyro's own ELBO, on the same model, guide and batch.

    python benchmarks/elbo.py                            # toys: nothing but overhead; then the glyph router
    python benchmarks/elbo.py --workloads catalog --episodes 64

A step is ``differentiable_loss(model, guide, ...)`` and its backward pass (``loss_and_grads`` of Trace_ELBO leaves
plain nn.Parameters out). The toys are an encoder of the support, a latent for each episode and a small network for its
queries: microseconds of arithmetic, so that what is measured is the bookkeeping of the two estimators. "router" is the
quickstart's: catalog guide, enumerated routings, composed networks on glyphs.

Objectives take turns, in another order every round, and a ratio is taken within a round, so that a slow moment of the
machine hits all of them. The table has medians over rounds, and a bootstrap 95 % interval of the median ratio.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

import pyro_smat
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.routing.local_module import LocalModule

FEATURES, LATENT, ROUTINGS, QUERIES, WAYS, HIDDEN = 16, 8, 16, 10, 5, 32
TAIL = 0.1


class Program(LocalModule):
    """Toy model: a latent of the episode and a query give class logits. ``discrete``: the latent is a table's row."""

    def __init__(self, discrete: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROUTINGS, LATENT)) if discrete else None
        self.head = nn.Sequential(nn.Linear(LATENT + FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WAYS))

    def forward(self, support: Tensor, queries: Tensor, labels: Tensor) -> None:
        with pyro.plate("episodes", len(queries), dim=-2):
            if self.table is None:
                z = pyro.sample("z", dist.Normal(queries.new_zeros(LATENT), 1.0).to_event(1))
            else:
                z = self.table[pyro.sample("k", dist.Categorical(logits=queries.new_zeros(ROUTINGS)))]
            latent = z.expand(*z.shape[:-3], len(queries), QUERIES, LATENT)
            logits = self.head(torch.cat([latent, queries.expand(*latent.shape[:-1], FEATURES)], -1))
            with pyro.plate("queries", QUERIES, dim=-1):
                pyro.sample("y", dist.Categorical(logits=logits), obs=labels)


class Guide(LocalModule):
    """Toy guide, amortised over the support. ``infer`` enumerates the discrete latent or leaves it to the score."""

    def __init__(self, discrete: bool, infer: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.discrete, self.infer = discrete, infer
        out = ROUTINGS if discrete else 2 * LATENT
        self.net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, out))

    def forward(self, support: Tensor, queries: Tensor, labels: Tensor) -> None:
        out = self.net(support.mean(1)).unsqueeze(1)
        with pyro.plate("episodes", len(queries), dim=-2):
            if self.discrete:
                pyro.sample("k", dist.Categorical(logits=out), infer=self.infer)
            else:
                loc, raw = out.chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))


@dataclass(frozen=True)
class Workload:
    """Model, guide and arguments, and Pyro's objective with the options of ours that make both equal at rho = 1."""

    model: nn.Module
    guide: nn.Module
    args: tuple[Any, ...]
    reference: type[ELBO]
    options: dict[str, Any]

    def step(self, elbo: ELBO) -> None:
        for module in (self.model, self.guide):
            module.zero_grad()
        elbo.differentiable_loss(self.model, self.guide, *self.args).backward()


def toy(episodes: int, discrete: bool, infer: dict[str, Any] | None, reference: type[ELBO], kl: str) -> Workload:
    torch.manual_seed(0)
    args = (
        torch.randn(episodes, 5, FEATURES),
        torch.randn(episodes, QUERIES, FEATURES),
        torch.randint(0, WAYS, (episodes, QUERIES)),
    )
    return Workload(Program(discrete), Guide(discrete, infer), args, reference, {"kl": kl})


def router(episodes: int) -> Workload:
    """The quickstart's router on glyph episodes."""
    config = load_config(Path(pyro_smat.__file__).parent / "cli" / "quickstart.toml")
    device = torch.device("cpu")
    built = build_router(config, device)
    pool = build_pool(config, "train")
    batch = config.episodes.sampler(pool, seed=0).sample(episodes)
    return Workload(built.model, built.guide, (built.features(pool).attach(batch),), TraceEnum_ELBO, {})


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "gaussian": lambda b: toy(b, False, None, TraceMeanField_ELBO, "exact"),
    "gaussian, sampled KL": lambda b: toy(b, False, None, Trace_ELBO, "sampled"),
    "catalog": lambda b: toy(b, True, {"enumerate": "parallel"}, TraceEnum_ELBO, "exact"),
    "score function": lambda b: toy(b, True, None, Trace_ELBO, "sampled"),
    "router": router,
}


@dataclass(frozen=True)
class Timing:
    """One row: milliseconds of a step (median), and the median ratio to the reference with its 95 % interval."""

    workload: str
    episodes: int
    objective: str
    milliseconds: float
    ratio: float
    lower: float
    upper: float


def measure(name: str, episodes: int, rounds: int, steps: int) -> list[Timing]:
    """All objectives of a workload, in turns."""
    work = WORKLOADS[name](episodes)
    nesting = {"max_plate_nesting": 2}
    objectives: dict[str, ELBO] = {
        work.reference.__name__: work.reference(**nesting),
        "CVaR_ELBO, rho = 1": CVaR_ELBO(rho=1.0, **nesting, **work.options),
        f"CVaR_ELBO, rho = {TAIL}, queue": CVaR_ELBO(rho=TAIL, threshold="queue", **nesting, **work.options),
        f"CVaR_ELBO, rho = {TAIL}, batch": CVaR_ELBO(rho=TAIL, **nesting, **work.options),
    }
    times: dict[str, list[float]] = {key: [] for key in objectives}
    order, shuffled = list(objectives), random.Random(0)
    for number in range(-2, rounds):  # two to warm up
        shuffled.shuffle(order)
        for key in order:
            start = time.perf_counter()
            for _ in range(steps):
                work.step(objectives[key])
            if number >= 0:
                times[key].append(1e3 * (time.perf_counter() - start) / steps)
    first = next(iter(objectives))
    rows = []
    for key, own in times.items():
        ratios = [a / b for a, b in zip(own, times[first], strict=True)]
        lower, upper = interval(ratios)
        rows.append(Timing(name, episodes, key, statistics.median(own), statistics.median(ratios), lower, upper))
    return rows


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def table(rows: list[Timing]) -> str:
    lines = ["| workload | episodes | objective | ms a step | x Pyro's | 95 % |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r.workload} | {r.episodes} | {r.objective} | {r.milliseconds:.2f} | {r.ratio:.2f} "
        f"| {r.lower:.2f} to {r.upper:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main(
    workloads: Annotated[str, typer.Option(help=f"Semicolon-separated, of {'; '.join(WORKLOADS)}.")] = ";".join(
        WORKLOADS
    ),
    episodes: Annotated[str, typer.Option(help="B, comma-separated.")] = "16,64",
    rounds: Annotated[int, typer.Option(min=3, help="Turns of every objective.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the timings here.")] = None,
) -> None:
    """Print the table."""
    names = [name.strip() for name in workloads.split(";")]
    if unknown := sorted(set(names) - set(WORKLOADS)):
        raise typer.BadParameter(f"unknown workloads {unknown}; expected some of {list(WORKLOADS)}")
    torch.set_num_threads(threads)
    facts = {
        "command": " ".join(["python", "benchmarks/elbo.py", *sys.argv[1:]]),
        "processor": f"{platform.machine()}, {threads} threads",
        "torch": torch.__version__,
        "pyro": pyro.__version__,
    }
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), end="\n\n", flush=True)
    rows: list[Timing] = []
    for name in names:
        for size in (int(b) for b in episodes.split(",")):
            measured = measure(name, size, rounds, steps if name != "router" else 1)
            print(table(measured), end="\n\n", flush=True)
            rows += measured
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({**facts, "timings": [asdict(r) for r in rows]}, indent=2))


if __name__ == "__main__":
    typer.run(main)
