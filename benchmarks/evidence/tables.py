"""What `table.py show` prints: averages over domains and seeds, and paired differences with intervals over episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from suite import TRAINED, UNSEEN

TAIL, LEVEL, RESAMPLES = 0.1, 0.95, 1000
BLOCKS = {"new classes of trained domains": TRAINED, "domains that nothing was trained on": UNSEEN}
SINGLE = "source: "
BEST_FIXED = "best fixed source (chosen on these episodes)"

Results = list[dict[str, Any]]
Statistic = Callable[[NDArray[Any]], float]


def tail(losses: NDArray[Any]) -> float:
    """CVaR 0.1: the mean of the worst tenth."""
    worst = max(1, round(TAIL * len(losses)))
    return float(np.sort(losses)[-worst:].mean())


def cells(found: Results, domains: tuple[str, ...], condition: str) -> Iterator[dict[str, Any]]:
    """Every (seed, domain) of a block: {"accuracy": {method: values}, "loss": ...}."""
    for one in found:
        for domain in domains:
            if domain in one["results"]:
                cell: dict[str, Any] = one["results"][domain][condition]
                yield {kind: {m: np.array(v) for m, v in cell[kind].items()} for kind in ("accuracy", "loss")}


def averages(block: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Method -> mean accuracy in percent and mean CVaR over the cells of a block."""
    methods = list(block[0]["accuracy"])
    return {
        m: (
            100 * float(np.mean([cell["accuracy"][m].mean() for cell in block])),
            float(np.mean([tail(cell["loss"][m]) for cell in block])),
        )
        for m in methods
    }


def difference(
    block: list[dict[str, Any]], ours: str, other: str, kind: str, statistic: Statistic
) -> tuple[float, float, float]:
    """Mean over cells of statistic(ours) - statistic(other), with an interval from resampled episodes of each cell."""
    generator = np.random.default_rng(0)
    at, draws = [], np.zeros((len(block), RESAMPLES))
    for k, cell in enumerate(block):
        a, b = cell[kind][ours], cell[kind][other]
        at.append(statistic(a) - statistic(b))
        for j, rows in enumerate(generator.integers(0, len(a), (RESAMPLES, len(a)))):
            draws[k, j] = statistic(a[rows]) - statistic(b[rows])
    low, high = np.quantile(draws.mean(0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.mean(at)), float(low), float(high)


def print_tables(found: Results, ours: tuple[str, ...] = ("routed, trained", "from_sources")) -> None:
    """Markdown on the standard output."""
    facts = [one["facts"] for one in found]
    conditions = list(next(iter(found[0]["results"].values())))
    print(f"{facts[0]['device']}, torch {facts[0]['torch']}; seeds {[f['seed'] for f in facts]}")
    print(f"temperature of the weighted average, chosen on validation classes: {[f['temperature'] for f in facts]}")
    print(f"seconds: {[{k: round(v, 1) for k, v in f['seconds'].items()} for f in facts]}\n")
    blocks = {
        (title, condition): list(cells(found, domains, condition))
        for title, domains in BLOCKS.items()
        for condition in conditions
    }
    blocks = {key: block for key, block in blocks.items() if block}
    table = {key: averages(block) for key, block in blocks.items()}
    for title in BLOCKS:
        keys = [key for key in table if key[0] == title]
        if not keys:
            continue
        print(f"| {title}: accuracy % (CVaR .1, nats) | " + " | ".join(condition for _, condition in keys) + " |")
        print("|---" * (len(keys) + 1) + "|")
        for method in table[keys[0]]:
            row = [f"{table[key][method][0]:.1f} ({table[key][method][1]:.2f})" for key in keys]
            print(f"| {method} | " + " | ".join(row) + " |")
        print()
    rivals = [m for m in next(iter(table.values())) if not m.startswith(("routed", "from_sources", "oracle"))]
    for method in ours:
        print(f"| {method} minus the best baseline of the block | accuracy, points | CVaR .1, nats | in percent |")
        print("|---|---|---|---|")
        for key, block in blocks.items():
            best = max(rivals, key=lambda m, key=key: table[key][m][0])
            least = min(rivals, key=lambda m, key=key: table[key][m][1])
            gain = difference(block, method, best, "accuracy", lambda a: 100 * float(a.mean()))
            saved = difference(block, method, least, "loss", tail)
            print(
                f"| {', '.join(key)} | {_shown(gain, 1)} to {best!r} | {_shown(saved, 2)} to {least!r} | "
                f"{100 * saved[0] / table[key][least][1]:+.0f} |"
            )
        print()
    print("| unseen domain, 5-shot: minus its best fixed source | accuracy, points | that source |")
    print("|---|---|---|")
    for domain in UNSEEN:
        block = list(cells(found, (domain,), conditions[0]))
        if block:
            means = averages(block)
            best = max((m for m in means if m.startswith(SINGLE)), key=lambda m: means[m][0])
            gain = difference(block, ours[0], best, "accuracy", lambda a: 100 * float(a.mean()))
            print(f"| {domain} | {_shown(gain, 1)} | {best} |")


def _shown(interval: tuple[float, float, float], digits: int) -> str:
    value, low, high = (f"{part:+.{digits}f}" for part in interval)
    return f"{value} [{low}, {high}]"
