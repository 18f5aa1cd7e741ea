"""Outcomes: what is kept of pairs of model and guide, and of baselines, on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bench import Bench
from drawn import Drawn

from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings

ROUTED, MAP, AVERAGED, PLAIN = "routed, trained", "routed, trained: one network", "from_sources", "from_sources, plain"

TEMPERATURE = 0.3  # of the weighted average: what all seeds chose on validation classes
Pair = tuple[Any, Any]
Cell = dict[str, Any]


def standard_pairs(bench: Bench, folder: Path) -> dict[str, Pair]:
    """The main table's router, of its run folder, and the averages without training."""
    router = bench.trained(folder)
    return {ROUTED: (router.model, router.guide), AVERAGED: bench.averaged(bench.options.noise)}


def baselines(temperature: float) -> list[Any]:
    """The rows beside the routed ones."""
    return [
        "best_source",
        "source_average",
        {"kind": "weighted_source_average", "temperature": temperature},
        {"kind": "concatenation", "temperature": temperature},
    ]


def evaluate_cell(pairs: Mapping[str, Pair], drawn: Drawn, temperature: float | None) -> Cell:
    """Accuracy and loss ``(N,)`` of every pair and every baseline on the same episodes, and how each pair routes.

    Args:
        pairs: by name; baselines and the MAP network are those of the first.
        drawn: the episodes.
        temperature: of the weighted average; None for no baselines.

    Returns:
        "accuracy" and "loss": method -> ``(N,)``; "misrouted" and "misrouting_regret": pair -> ``(N,)``; "group"
        ``(N,)``: the episode's domain, of the names "groups".
    """
    full = EvaluationSettings.bare()
    if temperature is not None:
        full = EvaluationSettings(rules=("map",), scores=(), baselines=baselines(temperature))
    cell: Cell = {"accuracy": {}, "loss": {}, "misrouted": {}, "misrouting_regret": {}}
    for number, (name, (model, guide)) in enumerate(pairs.items()):
        found = drawn.evaluate(model, guide, EvaluationSettings.bare() if number else full)
        names = {"posterior_predictive": name, "map": MAP}
        for method in (m for m in found.methods if m in names or (not number and temperature and m != "fallback")):
            cell["accuracy"][names.get(method, method)] = found.accuracy(method)
            cell["loss"][names.get(method, method)] = found.loss(method)
        cell["misrouted"][name], cell["misrouting_regret"][name] = misrouting(found)
        cell["group"], cell["groups"] = found.route, list(drawn.groups)
    return cell


def misrouting(found: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Whether the posterior's best source is another than that of lowest query loss, and what it loses, in nats."""
    chosen, losses = found.weights.argmax(1), found.source_loss
    at = losses[np.arange(len(losses)), chosen]
    return (chosen != losses.argmin(1)).astype(np.int64), at - losses.min(1)
