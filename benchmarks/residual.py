"""Which search for the residual's support to use, and how much its certificate says.

    python benchmarks/residual.py                          # a quarter of an hour on one core
    python benchmarks/residual.py --methods splicing,greedy --tasks 20

Synthetic regressions: features of variance 1 that share a factor (correlation rho), R Gaussian sources mixed by flat
Dirichlet weights, a residual of k entries between 1 and 2 in size, noise of standard deviation 0.1. The first table has
a row a method:

- **optimal**: share of tasks (d = 16, R = 4, k = 3, rho .5) whose value is the least over all 560 supports, each
  refitted, to 1e-7 relative;
- **support**: share of tasks whose true support is found (d = 200, R = 8, k = 5, n = 60, and few-shot d = 512, k = 4,
  n = 25, rho .3);
- **best**: share of few-shot tasks in which no other method of the table has a lower value: there the optimum is not
  always the truth;
- **ms**: median milliseconds of CPU time of a search, joint refit included, bound not.

Every method starts at the best weights without a residual and ends in a joint refit. The second table is of the lower
bound at the optimum (n = 30 and 15) or at the best value known: median of bound / value, share of tasks in which the
gap is below 5%, and how often a bound was above the brute-force optimum, which must be never.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from tqdm.auto import tqdm

from pyro_smat.solvers.composition import solve_composition
from pyro_smat.solvers.problem_from_data import build_problem
from pyro_smat.solvers.refit import refit
from pyro_smat.solvers.residual import METHODS

SLOW = ("iht", "group_lasso", "hard_concrete")
RIDGE = 1e-3
RIDGES = (1e-3, 1e-2, 0.1, 0.5)
OPTIMAL = 1e-7  # relative


@dataclass(frozen=True)
class Setting:
    """Sizes of the tasks of a column."""

    title: str
    examples: int
    entries: int
    sources: int
    budget: int
    correlation: float


SMALL = (Setting("n=30", 30, 16, 4, 3, 0.5), Setting("n=15", 15, 16, 4, 3, 0.5))
SUPPORT = tuple(Setting(f"n=60 rho={rho}", 60, 200, 8, 5, rho) for rho in (0.0, 0.3, 0.5))
FEW = Setting("n=25 d=512", 25, 512, 8, 4, 0.3)


@dataclass(frozen=True)
class Task:
    """Arrays of a task and the support of its true residual."""

    features: npt.NDArray[np.float64]
    targets: npt.NDArray[np.float64]
    sources: npt.NDArray[np.float64]
    support: npt.NDArray[np.intp]


def make_task(setting: Setting, seed: int, noise: float) -> Task:
    """A regression as the module's docstring has it."""
    rng = np.random.default_rng([seed, setting.examples, setting.entries])
    shared, own = rng.normal(size=(setting.examples, 1)), rng.normal(size=(setting.examples, setting.entries))
    features = np.sqrt(setting.correlation) * shared + np.sqrt(1 - setting.correlation) * own
    sources = rng.normal(size=(setting.sources, setting.entries))
    support = np.sort(rng.choice(setting.entries, setting.budget, replace=False))
    theta = rng.dirichlet(np.ones(setting.sources)) @ sources
    theta[support] += rng.choice([-1.0, 1.0], setting.budget) * rng.uniform(1, 2, setting.budget)
    return Task(features, features @ theta + noise * rng.normal(size=setting.examples), sources, support)


def brute_force(task: Task, budget: int, ridge: float) -> float:
    """The optimum over all supports."""
    problem, (entries,) = build_problem(task.features, task.targets, task.sources, budget=budget, ridge=ridge)
    supports = itertools.combinations(range(entries), budget)
    return min(refit(problem, np.array(support)).value for support in supports)


@dataclass(frozen=True)
class Run:
    """One search: its value, whether it found the truth, and milliseconds of CPU time."""

    value: float
    truth: bool
    milliseconds: float


def search(task: Task, budget: int, method: str) -> Run:
    started = time.process_time()
    solution = solve_composition(
        task.features,
        task.targets,
        task.sources,
        budget=budget,
        ridge=RIDGE,
        method=method,
        bound_iterations=0,
    )
    elapsed = 1e3 * (time.process_time() - started)
    return Run(solution.value, np.array_equal(solution.support, task.support), elapsed)


def searches(setting: Setting, methods: list[str], counts: dict[str, int], noise: float) -> dict[str, list[Run]]:
    """Every method on the first tasks of a setting."""
    jobs = [(seed, name) for name in methods for seed in range(counts[name])]
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    for seed, name in tqdm(jobs, setting.title, leave=False):
        runs[name].append(search(make_task(setting, seed, noise), setting.budget, name))
    return runs


def method_rows(methods: list[str], counts: dict[str, int], noise: float) -> Iterator[list[str]]:
    """The first table, row by row."""
    optima = {
        setting: [
            brute_force(make_task(setting, seed, noise), setting.budget, RIDGE)
            for seed in tqdm(range(max(counts.values())), f"all supports, {setting.title}", leave=False)
        ]
        for setting in SMALL
    }
    runs = {setting: searches(setting, methods, counts, noise) for setting in (*SMALL, *SUPPORT, FEW)}
    least = [
        min(runs[FEW][name][seed].value for name in methods if seed < counts[name])
        for seed in range(max(counts.values()))
    ]

    def share(values: list[Run], references: list[float]) -> str:
        return f"{np.mean([r.value <= o * (1 + OPTIMAL) for r, o in zip(values, references, strict=False)]):.2f}"

    def truth(values: list[Run]) -> str:
        return f"{np.mean([run.truth for run in values]):.2f}"

    def milliseconds(values: list[Run]) -> str:
        return f"{np.median([run.milliseconds for run in values]):.0f}"

    for name in methods:
        yield [
            name,
            str(counts[name]),
            *(share(runs[setting][name], optima[setting]) for setting in SMALL),
            *(truth(runs[setting][name]) for setting in (*SUPPORT, FEW)),
            share(runs[FEW][name], least),
            *(milliseconds(runs[setting][name]) for setting in (SMALL[0], SUPPORT[-1], FEW)),
        ]


def bound_rows(count: int, noise: float) -> Iterator[list[str]]:
    """The second table, row by row."""
    for setting, ridge in itertools.product((*SMALL, SUPPORT[-1], FEW), RIDGES):
        ratios, above, elapsed = [], 0, []
        for seed in tqdm(range(count), f"bound, {setting.title}, ridge {ridge}", leave=False):
            task = make_task(setting, seed, noise)
            arguments = (task.features, task.targets, task.sources)
            started = time.process_time()
            solution = solve_composition(*arguments, budget=setting.budget, ridge=ridge)
            elapsed.append(1e3 * (time.process_time() - started))
            value = solution.value
            if setting in SMALL:
                value = brute_force(task, setting.budget, ridge)
                above += solution.lower_bound > value
            ratios.append(solution.lower_bound / value)
        broken = f"{above} of {count}" if setting in SMALL else "-"
        small = f"{np.mean(np.array(ratios) > 0.95):.2f}"
        yield [setting.title, f"{ridge:g}", f"{np.median(ratios):.3f}", small, broken, f"{np.median(elapsed):.0f}"]


def show(header: list[str], rows: Iterator[list[str]]) -> None:
    """A table in Markdown."""
    table = [header, ["---"] * len(header), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def main(
    tasks: Annotated[int, typer.Option(help="tasks of each setting")] = 100,
    slow_tasks: Annotated[int, typer.Option(help=f"tasks of each setting for {', '.join(SLOW)}")] = 25,
    bound_tasks: Annotated[int, typer.Option(help="tasks of each setting and ridge in the second table")] = 30,
    methods: Annotated[str, typer.Option(help="names, separated by commas")] = ",".join(METHODS),
    noise: Annotated[float, typer.Option(help="standard deviation of the targets' noise")] = 0.1,
) -> None:
    """Print both tables."""
    names = methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise typer.BadParameter(f"{', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    counts = {name: min(tasks, slow_tasks) if name in SLOW else tasks for name in names}
    columns = [
        *(f"optimal {setting.title}" for setting in SMALL),
        *(f"support {setting.title}" for setting in (*SUPPORT, FEW)),
        "best " + FEW.title,
        *(f"CPU ms {setting.title}" for setting in (SMALL[0], SUPPORT[-1], FEW)),
    ]
    show(["method", "tasks", *columns], method_rows(names, counts, noise))
    print()
    columns = ["tasks", "ridge", "median bound / value", "within 5%", "above the optimum", "CPU ms, bound included"]
    show(columns, bound_rows(bound_tasks, noise))


if __name__ == "__main__":
    typer.run(main)
