"""Decision rules of the router with an expert at the compute that each may spend: networks of a task.

The front, marked with *: no other rule is as accurate with fewer networks, or more accurate with as many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bench import BLOCKS, Bench
from cells import Cells
from drawn import Drawn
from markdown import Found, accuracy, cvar, grid
from options import Options
from outcomes import EXPERT, Standard

from pyro_smat.inference.evaluation import EvaluationSettings
from pyro_smat.registry import build, choose
from trials.variations import variation_keys

TITLE = "Decision rules"
RULES: dict[str, Any] = {
    "map": "map",
    "top 2": {"kind": "top_k", "k": 2},
    "top 3": {"kind": "top_k", "k": 3},
    "half of the posterior": {"kind": "posterior_predictive", "mass": 0.5},
    "90% of the posterior": {"kind": "posterior_predictive", "mass": 0.9},
    "99% of the posterior": {"kind": "posterior_predictive", "mass": 0.99},
    "all of the posterior": {"kind": "posterior_predictive", "mass": 1.0},
    "one draw (gibbs)": "gibbs",
    "mean of the weights": "mean",
    "uniform mixing": "uniform_mixing",
}


def keys(options: Options) -> list[tuple[str, ...]]:
    return variation_keys(options, RULES)


def run(bench: Bench, cells: Cells, folder: Path) -> None:
    standard = Standard(bench, folder)
    for rule, block, condition in cells.missing(keys(bench.options)):
        model, guide = standard.pairs[EXPERT]
        drawn, made = standard.drawn(block, condition), build(choose("decision_rule", RULES[rule]))
        deployed = drawn.evaluate(model, guide, EvaluationSettings.bare(), rule=made)
        values = {"accuracy": {"routed": deployed.accuracy(made.name)}, "loss": {"routed": deployed.loss(made.name)}}
        cells.write((rule, block, condition), values | {"networks": {"routed": networks(guide, drawn, made)}})


def networks(guide: Any, drawn: Drawn, rule: Any) -> np.ndarray:
    """``(N,)``: how many different networks a rule runs for each task."""
    counts = []
    for batch in drawn.batches:
        mixture = rule(guide.posterior(batch), batch)
        for task in range(len(batch)):
            used = mixture.coefficients[:, task][mixture.weights[:, task] > 0]
            counts.append(len(used.unique(dim=0)))
    return np.array(counts)


def show(found: Found) -> list[str]:
    lines = []
    for block in BLOCKS:

        def at(row: str, column: str, block: str = block) -> tuple[float, float] | None:
            key = (row, block, column)
            right = found.average(key, "accuracy", "routed", accuracy)
            count = found.average(key, "networks", "routed", lambda v: float(v.mean()))
            return None if right is None or count is None else (right, count)

        def text(row: str, column: str, block: str = block, at: Any = at) -> str | None:
            own = at(row, column)
            if own is None:
                return None
            worst = found.average((row, block, column), "loss", "routed", cvar(0.1))
            others = [other for name in RULES if name != row and (other := at(name, column)) is not None]
            beaten = any(a >= own[0] and n <= own[1] and (a, n) != own for a, n in others)
            return f"{own[0]:.1f} ({worst:.2f}), {own[1]:.1f}{'' if beaten else '*'}"

        corner = f"{block}: accuracy % (CVaR .1, nats), networks a task"
        lines += grid(corner, RULES, found.parts(2), text)
    return lines
