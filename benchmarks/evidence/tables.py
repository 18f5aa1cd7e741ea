"""What `table.py show` prints: averages over domains and seeds, and paired differences with intervals over episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from options import Options
from outcomes import AVERAGED, EXPERT, ONE, OVER_CHANGED, ROUTED, TOGETHER

TAIL, LEVEL, RESAMPLES = 0.1, 0.95, 1000
BLOCKS = {"new classes of trained domains": "trained", "domains that nothing was trained on": "unseen"}
SINGLE, UNIFORM = "source: ", "average of all sources"
NAMED = (UNIFORM, "average of all sources, weighted by support loss", "best source by support loss")
ROUTED_NAMES, COSINE_HEAD = ("routed", "from_sources"), ", cosine"

Results = list[dict[str, Any]]
Statistic = Callable[[NDArray[Any]], float]


def tail(losses: NDArray[Any]) -> float:
    """CVaR 0.1: the mean of the worst tenth."""
    worst = max(1, round(TAIL * len(losses)))
    return float(np.sort(losses)[-worst:].mean())


def cells(found: Results, domains: Sequence[str], condition: str) -> Iterator[dict[str, Any]]:
    """Every (seed, domain) of a block that is there: {"accuracy": {method: values}, "loss": ...}."""
    for one in found:
        for domain in domains:
            cell: dict[str, Any] | None = one["results"].get(domain, {}).get(condition)
            if cell is not None:
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


@dataclass(frozen=True)
class Comparison:
    """A method against the best of some others, picked on the very episodes.

    Attributes:
        ours: the method.
        others: what the others are called together.
        among: whether a method is one of them.
    """

    ours: str
    others: str
    among: Callable[[str], bool]


def _is_baseline(method: str) -> bool:
    return not method.startswith((*ROUTED_NAMES, "oracle")) and not method.endswith(OVER_CHANGED)


def _is_named(method: str) -> bool:
    """Averages, support choice or a source by itself, with the head of the routed rows."""
    return _is_baseline(method) and (method in NAMED or (method.startswith(SINGLE) and "," not in method))


def _is_named_by_cosine(method: str) -> bool:
    return method.endswith(COSINE_HEAD) and _is_named(method.removesuffix(COSINE_HEAD))


EVERY, AIM = "the best baseline", "the best of averages, support choice and fixed sources"
COMPARISONS = (
    *(Comparison(ours, EVERY, _is_baseline) for ours in (EXPERT, ROUTED, AVERAGED, TOGETHER)),
    *(Comparison(ours, AIM, _is_named) for ours in (EXPERT, ROUTED)),
    *(Comparison(ours, f"{AIM}, cosine prototypes,", _is_named_by_cosine) for ours in (EXPERT, ROUTED)),
    Comparison(EXPERT, "the best of these over sources with the expert", lambda method: method.endswith(OVER_CHANGED)),
    *(Comparison(f"{ours}{ONE}", UNIFORM, lambda method: method == UNIFORM) for ours in (EXPERT, ROUTED)),
)


def print_tables(found: Results, comparisons: Sequence[Comparison] = COMPARISONS) -> None:
    """Markdown on the standard output."""
    facts, settings = [one["facts"] for one in found], found[0]["settings"]
    conditions = list(Options(shot=settings["shot"]).table_conditions)
    print(f"{facts[0]['device']}, torch {facts[0]['torch']}; seeds {[one['seed'] for one in found]}")
    print(f"temperature of the weighted average, chosen on validation classes: {[f['temperature'] for f in facts]}")
    print(f"seconds: training and choosing {[round(f['seconds'], 1) for f in facts]}; cells {_seconds(found)}")
    print(f"missing: {_missing(found, conditions) or 'nothing'}\n")
    blocks = {
        (title, condition): list(cells(found, settings[kind], condition))
        for title, kind in BLOCKS.items()
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
    methods = list(next(iter(table.values())))
    for compared in comparisons:
        method, rivals = compared.ours, [m for m in methods if compared.among(m)]
        if method not in methods or not rivals:
            continue
        print(f"| {method} minus {compared.others} of the block | accuracy, points | CVaR .1, nats | in percent |")
        print("|---|---|---|---|")
        for key, block in blocks.items():
            best = max(rivals, key=lambda m, key=key: table[key][m][0])
            least = min(rivals, key=lambda m, key=key: table[key][m][1])
            gain = difference(block, method, best, "accuracy", lambda a: 100 * float(a.mean()))
            saved = difference(block, method, least, "loss", tail)
            print(
                f"| {', '.join(key)} | {shown(gain, 1)} to {best!r} | {shown(saved, 2)} to {least!r} | "
                f"{100 * saved[0] / table[key][least][1]:+.0f} |"
            )
        print()
    print("| unseen domain, 5-shot: minus its best fixed source | accuracy, points | that source |")
    print("|---|---|---|")
    for domain in settings["unseen"]:
        block = list(cells(found, [domain], conditions[0]))
        if block:
            means = averages(block)
            best = max((m for m in means if m.startswith(SINGLE) and _is_named(m)), key=lambda m: means[m][0])
            first = next(c.ours for c in comparisons if c.ours in means)
            gain = difference(block, first, best, "accuracy", lambda a: 100 * float(a.mean()))
            print(f"| {domain} | {shown(gain, 1)} | {best} |")


def _missing(found: Results, conditions: Sequence[str]) -> str:
    """Cells that are not there."""
    domains = [*found[0]["settings"]["trained"], *found[0]["settings"]["unseen"]]
    every = [(one, domain, condition) for one in found for domain in domains for condition in conditions]
    left = [(one["seed"], d, c) for one, d, c in every if c not in one["results"].get(d, {})]
    return "; ".join(f"seed {seed}: {domain}, {condition}" for seed, domain, condition in left)


def _seconds(found: Results) -> list[float]:
    """Of all cells of each seed."""
    return [round(sum(c["seconds"] for cells in one["results"].values() for c in cells.values()), 1) for one in found]


def shown(interval: tuple[float, float, float], digits: int) -> str:
    """Value and interval."""
    value, low, high = (f"{part:+.{digits}f}" for part in interval)
    return f"{value} [{low}, {high}]"
