"""Outcomes: what is kept of pairs of model and guide, and of baselines, on the same episodes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from bench import BLOCKS, CORRUPTIONS, Bench, merged
from drawn import Drawn
from options import MARKS
from suite import GENERALIST

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings
from pyro_smat.networks.features import SourceFeatures

ROUTED, AVERAGED, PLAIN = "routed, trained", "from_sources", "from_sources, plain"
EXPERT, ONE = "routed, trained with an expert", ": one network"
OVER_CHANGED = ", over sources with the expert"
EXPERT_ALONE = {"experts": {"count": 1, "sparsity": 0.9}, "training": {"delta_learning_rate": 3e-5}}
WITH_EXPERT = merged(  # what is better on validation classes: trials/experts.py
    EXPERT_ALONE,
    {"objective": {"kl_weight": 0.1}, "episodes": {"corruptions": (*CORRUPTIONS, MARKS | {"probability": 0.25})}},
)
BY_COSINE = {"model": {"metric": "cosine", "classifier": "prototypes"}}  # the head that sources were fine-tuned with
COSINE, TOGETHER, AVERAGED_TOGETHER = (
    f"{ROUTED}, cosine prototypes",
    f"{EXPERT}, queries together",
    f"{AVERAGED}, queries together",
)
QUERY_WEIGHT = 0.5

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    ROUTED: ("router", {}),
    EXPERT: ("router-expert", WITH_EXPERT),
    COSINE: ("router-cosine", BY_COSINE),
}
TEMPERATURE = 0.3  # of the weighted average: what all seeds chose on validation classes
Pair = tuple[Any, Any]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Standard:
    """The routers of the main table, of their run folders, and what they are compared with.

    Attributes:
        bench: one seed.
        folder: that holds its run folders.
    """

    bench: Bench
    folder: Path

    def router(self, name: str) -> Router:
        """Trained, where it is not there yet."""
        where, changes = RUNS[name]
        return self.bench.trained(self.folder / where, changes)

    @cached_property
    def routers(self) -> Mapping[str, Router]:
        """Over the sources as they are, and with an expert."""
        return {name: self.router(name) for name in (ROUTED, EXPERT)}

    @cached_property
    def pairs(self) -> Mapping[str, Pair]:
        """These and the average without training."""
        found = {name: (router.model, router.guide) for name, router in self.routers.items()}
        return found | {AVERAGED: self.bench.averaged(self.bench.options.noise)}

    @cached_property
    def blocks(self) -> Mapping[str, SourceFeatures]:
        """Test classes as all pairs see them."""
        return {name: self.features(self.bench.block(name)) for name in BLOCKS}

    def features(self, pool: ImagePool) -> SourceFeatures:
        """A pool as all pairs see it."""
        return self.routers[EXPERT].features(pool, of_catalog=True)

    def drawn(self, block: str, condition: str) -> Drawn:
        """Episodes of a condition of the main table."""
        options = self.bench.options
        return self.bench.draw(self.blocks[block], options.episodes, **options.table_conditions[condition])


def together(pair: Pair) -> Pair:
    """The pair with queries that help to classify each other."""
    model = copy.deepcopy(pair[0])
    model.head_settings = replace(model.head_settings, transduction=QUERY_WEIGHT)
    return model, pair[1]


def rivals(temperature: float) -> list[Any]:
    """The baselines that may win, over any sources."""
    return [
        "best_source",
        "source_average",
        {"kind": "weighted_source_average", "temperature": temperature},
        {"kind": "concatenation", "temperature": temperature},
    ]


def baselines(temperature: float, names: Sequence[str]) -> list[Any]:
    """The rows beside the routed ones, over sources of these names."""
    selected = {"kind": "concatenation", "temperature": temperature, "select": True}
    aligned = [{"kind": "aligned_source", "source": GENERALIST}] if GENERALIST in names else []
    return [*rivals(temperature), {**selected, "name": "ridge on selected features"}, *aligned]


def evaluate_cell(
    pairs: Mapping[str, Pair], drawn: Drawn, kinds: Sequence[Any] = (), other_head: str | None = None
) -> Cell:
    """Accuracy and loss ``(N,)`` of every pair and every baseline on the same episodes, and how each pair routes.

    Args:
        pairs: by name; each also as one network, its MAP. Baselines have the metric and scale of the first.
        drawn: the episodes.
        kinds: baselines; none leaves single sources out, too.
        other_head: a pair whose head the baselines are evaluated with, too; its metric is appended to their names.

    Returns:
        "accuracy" and "loss": method -> ``(N,)``; "misrouted" and "misrouting_regret": pair -> ``(N,)``; "group"
        ``(N,)``: the episode's domain, of the names "groups".
    """
    bare = EvaluationSettings(rules=("map",), scores=(), baselines=(), each_source=False)
    full = EvaluationSettings(rules=("map",), scores=(), baselines=kinds, each_source=bool(kinds))
    cell: Cell = {"accuracy": {}, "loss": {}, "misrouted": {}, "misrouting_regret": {}}
    for number, (name, (model, guide)) in enumerate(pairs.items()):
        whole, suffix = not number or name == other_head, f", {model.metric}" if number else ""
        found = drawn.evaluate(model, guide, full if whole else bare)
        names = {"posterior_predictive": name, "map": f"{name}{ONE}"}
        for method in (m for m in found.methods if m in names or (whole and kinds and m != "fallback")):
            cell["accuracy"][names.get(method, method + suffix)] = found.accuracy(method)
            cell["loss"][names.get(method, method + suffix)] = found.loss(method)
        cell["misrouted"][name], cell["misrouting_regret"][name] = misrouting(found)
        cell["group"], cell["groups"] = found.route, list(drawn.groups)
    return cell


def misrouting(found: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Whether the posterior's best source is another than that of lowest query loss, and what it loses, in nats."""
    chosen, losses = found.weights.argmax(1), found.source_loss
    at = losses[np.arange(len(losses)), chosen]
    return (chosen != losses.argmin(1)).astype(np.int64), at - losses.min(1)
