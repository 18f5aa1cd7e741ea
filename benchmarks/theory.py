"""What is true of mixtures of sources with sparse residuals: every claim of docs/theory.md, simulated or brute-forced.

    python benchmarks/theory.py            # minutes on one core
    python benchmarks/theory.py --quick    # the same tables from fewer draws
    python benchmarks/theory.py --claims sparse_rate,joint_rate

Prints one table a claim, each with its seed, then the facts drawn from it; intervals are 95%. The simulations are in
claims/ and do not use the package's solvers where they say exact, except ``joint_rate`` and ``frank_wolfe``, whose
subject they are. notebooks/rates_and_hardness.ipynb shows the same as figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from claims.exact_erm import explicit_bound, too_few_examples
from claims.excess_risk import convex_aggregation, full_budget, mixture_rate, sparse_amplitudes, sparse_rate
from claims.finding import Finding
from claims.frank_wolfe import frank_wolfe
from claims.hardness import coverage_gadget, exact_cover_gadget
from claims.joint_rate import joint_rate

CLAIMS: dict[str, tuple[Callable[..., Finding], dict[str, Any], dict[str, Any]]] = {  # name -> what, sizes, --quick
    "mixture_rate": (mixture_rate, {"repetitions": 8000}, {"repetitions": 1000}),
    "sparse_rate": (sparse_rate, {"repetitions": 1200}, {"repetitions": 120}),
    "sparse_amplitudes": (sparse_amplitudes, {"repetitions": 1000}, {"repetitions": 100}),
    "joint_rate": (joint_rate, {"repetitions": 48}, {"repetitions": 3, "sources": (2, 16)}),
    "convex_aggregation": (convex_aggregation, {"repetitions": 1000}, {"repetitions": 100}),
    "full_budget": (full_budget, {"repetitions": 8000}, {"repetitions": 1000}),
    "explicit_bound": (explicit_bound, {"designs": 40}, {"designs": 4}),
    "too_few_examples": (too_few_examples, {}, {}),
    "frank_wolfe": (frank_wolfe, {"problems": 200}, {"problems": 20}),
    "coverage_gadget": (coverage_gadget, {"instances": 200}, {"instances": 200}),
    "exact_cover_gadget": (exact_cover_gadget, {"instances": 2000}, {"instances": 200}),
}


def main(
    claims: Annotated[str, typer.Option(help="Comma-separated; all of them by default.")] = ",".join(CLAIMS),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer draws: seconds instead of minutes.")] = False,
    seed: Annotated[int, typer.Option(help="Of every claim.")] = 0,
) -> None:
    """Print the tables."""
    names = [name.strip() for name in claims.split(",")]
    if unknown := sorted(set(names) - set(CLAIMS)):
        raise typer.BadParameter(f"unknown claims {unknown}; expected some of {list(CLAIMS)}")
    for name in names:
        simulate, full_sizes, quick_sizes = CLAIMS[name]
        started = time.perf_counter()
        finding = simulate(**(quick_sizes if quick else full_sizes), seed=seed)
        print(f"## {name}\n\n{finding}\n\n({time.perf_counter() - started:.1f} s)\n", flush=True)


if __name__ == "__main__":
    typer.run(main)
