"""Do the guarantees hold, how tight are they, and what do they cost? Simulated where the truth is known.

    python benchmarks/certificates.py                       # about eight minutes on two cores
    python benchmarks/certificates.py --repetitions 50      # the same tables from fewer samples
    python benchmarks/certificates.py --output runs/certificates.md

Violation rates and mean gaps of every bound of a mean and a CVaR over five losses, three sizes and three tails;
learn-then-test against plug-in; false alarms of the drift test; seconds for a million losses. Prints Markdown, rates
with their 95% Clopper-Pearson intervals. A guarantee is refuted where a whole interval lies above delta.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from claims.finding import markdown
from guarantees import coverage, decisions, speed

ABSTENTION_COUNTS = (200, 500, 2000)


def sections(repetitions: int, processes: int, losses: int, seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Heading and table, one after the other."""
    yield f"Seconds for {losses:,} losses on one core", speed.measure(losses, seed)
    with multiprocessing.get_context("spawn").Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        everything = sorted(coverage.cases(), key=lambda case: -case.count)  # the long ones first
        simulate = partial(coverage.simulate, repetitions=repetitions, seed=seed)
        by_case = {result.case: result for result in pool.imap_unordered(simulate, everything)}
        results = [by_case[case] for case in coverage.cases()]
        means = [result for result in results if result.case.rho == 1]
        tails = [result for result in results if result.case.rho < 1]
        for what, some in (("mean", means), ("CVaR", tails)):
            yield f"Bounds of the {what}, delta = {coverage.DELTA}: in short", coverage.summary(some)
            yield f"Bounds of the {what}: mean gap", coverage.gaps(some)
            yield f"Bounds of the {what}: violation rate", coverage.violations(some)
        grid = [(binary, count, repetitions, seed) for binary in (True, False) for count in ABSTENTION_COUNTS]
        yield (
            f"Abstention: selective risk at most {decisions.RISK}, delta = {decisions.DELTA}",
            pd.DataFrame(pool.starmap(decisions.simulate_abstention, grid, chunksize=1)),
        )
        streams = pool.starmap(decisions.simulate_drift, [(kind, repetitions, seed) for kind in decisions.SCORES])
        yield (
            f"Drift: {decisions.STREAM} tasks after a reference of {decisions.REFERENCE}",
            pd.DataFrame([row for rows in streams for row in rows]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="samples of every case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--losses", type=int, default=1_000_000, help="of the timings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a Markdown file to write as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, texts = time.perf_counter(), []
    for heading, table in sections(arguments.repetitions, arguments.processes, arguments.losses, arguments.seed):
        texts.append(f"### {heading}\n\n{markdown(table)}\n")
        print(texts[-1], flush=True)
    print(f"{arguments.repetitions} repetitions, {time.perf_counter() - started:.0f} s")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(texts))


if __name__ == "__main__":
    main()
