"""Oracle weights: how fast a quadratic over the simplex is solved to one gap, by peers and by every method of ours.

    python benchmarks/oracle.py                        # one core: cvxpy and Clarabel, all methods, the batched solver
    python benchmarks/oracle.py --device cuda          # tasks a second of the batched solver on a GPU

A task is R sources' predictions of n examples, which share a common part (the correlation), and targets near a mixture
of few sources plus noise; "dense" targets are near a mixture of all of them, with little noise. Every method gets the
sufficient statistics, G = A'A / n and b = A'y / n (cvxpy, which wants a norm, gets a square root of G made beforehand),
and is asked for a gap of 1e-8. What it reached is computed for all by one function, in float64, from the weights made
feasible. Methods take turns, and solve all tasks one after the other in each. Rows of single tasks are medians over
tasks and turns, those of batches over rounds. Times are of the processor on the CPU, so that other programs do not
count, and of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.solvers import QuadraticObjective, minimize_on_simplex, minimize_quadratics_on_simplex
from pyro_smat.solvers.simplex import Method

SOURCES = 64
GAP = 1e-8
TURNS = 3
ITERATIONS = 2000  # of the methods that do not reach the gap
MODELLED, COMPILED = "cvxpy + Clarabel", "cvxpy + Clarabel, compiled once"
Solver = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class Case:
    """Examples of a task, correlation of the sources' predictions, and whether the target mixes all of them."""

    examples: int
    correlation: float
    dense: bool = False

    def __str__(self) -> str:
        return f"n = {self.examples}, corr {self.correlation:g}{', dense' if self.dense else ''}"


CASES = (Case(25, 0.0), Case(25, 0.5), Case(25, 0.99), Case(200, 0.0), Case(200, 0.99), Case(200, 0.5, dense=True))


@dataclass(frozen=True)
class Row:
    """One line of the table: milliseconds a task, the worst gap, and how many times faster than the first line."""

    case: str
    method: str
    tasks: int
    milliseconds: float
    gap: float
    ratio: float


def statistics_of_tasks(case: Case, count: int, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """G ``(B, R, R)`` and b ``(B, R)`` in float64."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device=device, generator=generator)

    common, own = case.correlation**0.5, (1 - case.correlation) ** 0.5
    predictions = common * normal(count, case.examples, 1) + own * normal(count, case.examples, SOURCES)
    if case.dense:
        mixture = -torch.rand(count, SOURCES, dtype=torch.float64, device=device, generator=generator).log()
    else:
        chosen = torch.rand(count, SOURCES, device=device, generator=generator).argsort(1) < 4
        mixture = chosen.double()
    mixture /= mixture.sum(1, keepdim=True)
    noise = (0.1 if case.dense else 0.5) * own
    targets = torch.bmm(predictions, mixture.unsqueeze(2)) + noise * normal(count, case.examples, 1)
    gram = torch.bmm(predictions.mT, predictions) / case.examples
    return gram, torch.bmm(predictions.mT, targets).squeeze(2) / case.examples


def worst_gap(gram: Tensor, linear: Tensor, weights: Tensor) -> float:
    """The largest Frank-Wolfe gap of the tasks, in float64, of weights clipped and scaled onto the simplex."""
    feasible = weights.double().clamp_min(0)
    feasible /= feasible.sum(1, keepdim=True)
    gradient = torch.einsum("bij,bj->bi", gram.double(), feasible) - linear.double()
    return float(((feasible * gradient).sum(1) - gradient.amin(1)).max())


def square_root(gram: FloatArray, linear: FloatArray, rank: int) -> tuple[FloatArray, FloatArray]:
    """F ``(rank, R)`` and t ``(rank,)`` with F'F = G and F't = b."""
    values, vectors = np.linalg.eigh(gram)
    roots, kept = np.sqrt(values[-rank:]), vectors[:, -rank:]
    return roots[:, None] * kept.T, kept.T @ linear / roots


def peers(case: Case) -> dict[str, Solver]:
    """cvxpy with Clarabel, modelled for each task or compiled once with parameters, and Clarabel itself."""
    try:
        import clarabel
        import cvxpy as cp
        from scipy import sparse
    except ImportError:
        print("cvxpy or clarabel is not installed: no rows of peers\n")
        return {}
    rank = min(case.examples, SOURCES)
    tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), GAP / 10)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name, value in tight.items():
        setattr(settings, name, value)

    def model(root: FloatArray | cp.Parameter, target: FloatArray | cp.Parameter) -> tuple[cp.Problem, cp.Variable]:
        weights = cp.Variable(SOURCES, nonneg=True)
        loss = cp.sum_squares(root @ weights - target) / 2
        return cp.Problem(cp.Minimize(loss), [cp.sum(weights) == 1]), weights

    def modelled(root: FloatArray, target: FloatArray) -> FloatArray:
        problem, weights = model(root, target)
        problem.solve(solver="CLARABEL", **tight)
        return np.asarray(weights.value)

    parameters = cp.Parameter((rank, SOURCES)), cp.Parameter(rank)
    problem, weights = model(*parameters)

    def compiled(root: FloatArray, target: FloatArray) -> FloatArray:
        parameters[0].value, parameters[1].value = root, target
        problem.solve(solver="CLARABEL", **tight)
        return np.asarray(weights.value)

    constraints = sparse.csc_matrix(np.vstack([np.ones(SOURCES), -np.eye(SOURCES)]))
    bounds, cones = np.eye(SOURCES + 1)[0], [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(SOURCES)]

    def direct(gram: FloatArray, linear: FloatArray) -> FloatArray:
        matrix = sparse.csc_matrix(np.triu(gram))
        return np.array(clarabel.DefaultSolver(matrix, -linear, constraints, bounds, cones, settings).solve().x)

    return {MODELLED: modelled, COMPILED: compiled, "Clarabel": direct}


def own(method: Method) -> Solver:
    """A method of minimize_on_simplex, the objective's set-up included."""

    def solve(gram: FloatArray, linear: FloatArray) -> FloatArray:
        objective = QuadraticObjective(gram, linear)
        return minimize_on_simplex(objective, method=method, tolerance=GAP, max_iterations=ITERATIONS).weights

    return solve


def simplex_table(case: Case, count: int, batch: int, rounds: int) -> list[Row]:
    """All rows of a case on one core."""
    gram, linear = statistics_of_tasks(case, count)
    inputs = list(zip(gram.numpy(), linear.numpy(), strict=True))
    roots = [square_root(g, b, min(case.examples, SOURCES)) for g, b in inputs]
    solvers = peers(case) | {f"ours, {method}": own(method) for method in get_args(Method)}
    times: dict[str, list[float]] = {name: [] for name in solvers}
    solved: dict[str, list[FloatArray]] = {}
    for number in range(TURNS + 1):
        for name, solve in solvers.items():
            arguments = roots if name in (MODELLED, COMPILED) else inputs
            found = []
            for pair in arguments if number else arguments[:1]:  # the first turn warms up
                start = time.process_time()
                found.append(solve(*pair))
                times[name].append(1e3 * (time.process_time() - start))
            solved[name] = found
            if number == 0:
                times[name].clear()
    gaps = {name: worst_gap(gram, linear, torch.from_numpy(np.stack(found))) for name, found in solved.items()}
    rows = [(name, count, statistics.median(took), gaps[name]) for name, took in times.items()]

    milliseconds, gap = batched(*statistics_of_tasks(case, batch, seed=1), torch.float64, GAP, rounds)
    rows.append(("ours, batched", batch, milliseconds, gap))
    slowest = rows[0][2]
    return [Row(str(case), name, tasks, took, gap, slowest / took) for name, tasks, took, gap in rows]


def batched(gram: Tensor, linear: Tensor, dtype: torch.dtype, gap: float, rounds: int) -> tuple[float, float]:
    """Median milliseconds a task of the batched solver, and its worst gap on the problems in float64."""
    problems = gram.to(dtype), linear.to(dtype)
    times = []
    for number in range(rounds + 1):
        start = _now(gram.device)
        solution = minimize_quadratics_on_simplex(*problems, tolerance=gap)
        if number:  # the first warms up
            times.append(1e3 * (_now(gram.device) - start) / len(linear))
    return statistics.median(times), worst_gap(gram, linear, solution.weights)


def accelerator_table(case: Case, device: str, batches: list[int], rounds: int) -> list[Row]:
    """Rows of the batched solver on a device, the ratio being to its own smallest batch in float64."""
    rows: list[Row] = []
    for count in batches:
        gram, linear = statistics_of_tasks(case, count, device)
        for dtype, gap in ((torch.float64, 1e-8), (torch.float64, 1e-6), (torch.float32, 1e-6)):
            milliseconds, reached = batched(gram, linear, dtype, gap, rounds)
            name = f"batched, {str(dtype).removeprefix('torch.')}, gap {gap:g}"
            first = rows[0].milliseconds if rows else milliseconds
            rows.append(Row(str(case), name, count, milliseconds, reached, first / milliseconds))
    return rows


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def table(rows: list[Row]) -> str:
    lines = [
        "| case | method | tasks | ms a task | tasks a second | worst gap | x first |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.case} | {r.method} | {r.tasks} | {r.milliseconds:.4g} | {1e3 / r.milliseconds:,.0f} | {r.gap:.1e} "
        f"| {r.ratio:.3g} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the batched solver alone")
    parser.add_argument("--tasks", type=int, default=20, help="tasks of every case for methods that take one at a time")
    parser.add_argument("--batch", type=int, default=2048, help="tasks of a batch on the CPU")
    parser.add_argument("--batches", default="1000,10000,50000", help="tasks of a batch on a GPU, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of a batch")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()

    torch.set_num_threads(1)
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    facts = {
        "command": " ".join(["python", "benchmarks/oracle.py", *sys.argv[1:]]),
        "processor": f"{platform.machine()}, one thread{gpu}",
        "torch": torch.__version__,
        "sources": SOURCES,
    }
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), end="\n\n", flush=True)
    rows: list[Row] = []
    for case in CASES:
        if options.device == "cpu":
            measured = simplex_table(case, options.tasks, options.batch, options.rounds)
        else:
            batches = [int(count) for count in options.batches.split(",")]
            measured = accelerator_table(case, options.device, batches, options.rounds)
        print(table(measured), end="\n\n", flush=True)
        rows += measured
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
