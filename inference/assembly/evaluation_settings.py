"""EvaluationSettings: what stands beside a router's own rule and score in an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.decision.scores.standard import score_names
from pyro_smat.registry import Choice, Of, choose, describe

RULES = ("mean", "map", "gibbs", "posterior_predictive", "top_k", "uniform_mixing")
BASELINES = ("source_average", "weighted_source_average", "best_source", "oracle_source")


def _chosen(kind: str, names: Iterable[str]) -> tuple[Choice, ...]:
    return tuple(choose(kind, name) for name in names)


class EvaluationSettings(BaseModel):
    """Which rules, scores and baselines are run on every episode.

    The deployed rule and score and the fallback are always run.

    Attributes:
        rules: decision rules (:mod:`pyro_smat.inference.decision.rules`), in the order in which they draw.
        scores: uncertainty scores (:mod:`pyro_smat.inference.decision.scores`), likewise.
        baselines: see :mod:`pyro_smat.inference.evaluation.baselines`; those that ask for true routes are left out
            where none are known.
        each_source: whether every source by itself is a method too.

    Example:
        >>> EvaluationSettings(baselines=[{"kind": "weighted_source_average", "temperature": 0.3}]).baselines[0].kind
        'weighted_source_average'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    rules: tuple[Annotated[Choice, Of("decision_rule")], ...] = Field(
        default_factory=partial(_chosen, "decision_rule", RULES)
    )
    scores: tuple[Annotated[Choice, Of("uncertainty_score")], ...] = Field(
        default_factory=lambda: _chosen("uncertainty_score", score_names())
    )
    baselines: tuple[Annotated[Choice, Of("baseline")], ...] = Field(
        default_factory=partial(_chosen, "baseline", BASELINES)
    )
    each_source: bool = True

    @classmethod
    def bare(cls, scores: Iterable[UncertaintyScore] = ()) -> EvaluationSettings:
        """What a deployment needs and no more, with the scores that a choice among them reads."""
        read: list[Choice] = [describe("uncertainty_score", score) for score in scores]
        return cls(rules=(), scores=tuple(read), baselines=(), each_source=False)
