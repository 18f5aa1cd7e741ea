"""Deployment: everything that a deployed router decides with, as one frozen object that is saved as JSON.

Given alike to evaluation, reports, certificates and the classifier. Made by
:func:`~pyro_smat.inference.decision.choosing.choose_deployment` from validation episodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pyro_smat.certificates import Certificate
from pyro_smat.certificates.certificate import accepted_tasks
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.named_routings import SOURCE_0, NamedRoutings
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.decision.rules.posterior_predictive import PosteriorPredictive
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.models.routed import RoutedModel
from pyro_smat.registry import Choice, Of, build, choose, describe, find
from pyro_smat.registry.entries import Factory, name_of
from pyro_smat.routing import Catalog


class Deployment(BaseModel):
    """A decision rule; when it gives way to the fallback; and when its answers can be relied on.

    These are two decisions. A task *falls back* where its score exceeds the threshold: the fallback then answers, which
    pays only where validation says so. A task *abstains* where its :attr:`reliability` doubts it: whoever asked is told
    not to rely on the answer, whichever network gave it. Without a reliability what falls back abstains.

    Attributes:
        rule: a decision rule: its name, ``{"kind": name, option: ...}``, or an object.
        score: an uncertainty score, likewise.
        threshold: tasks whose score exceeds it fall back; infinity: none does, minus infinity: all do.
        fallback: the routing that they use: "source 0", "prior mean", a source, or a routing of the catalog.
        gate_samples: predictions are averaged over so many samples of the experts' gates; 0 takes the deployed masks.
        coverage: the share of validation episodes that do not fall back.
        misrouting: calibrates the posterior's own probability of misrouting, where true routes were known.
        reliability: a risk of the task and the tolerance for it.
        certificate: of the loss of reliable tasks, where their tolerance was chosen with a guarantee.

    Raises:
        ValueError: for an unknown rule or score, one that has not been fitted, or a NaN threshold.

    Example:
        >>> deployment = Deployment(rule="mean", score={"kind": "variance", "num_samples": 16}, threshold=0.2)
        >>> deployment == Deployment.from_dict(deployment.to_dict())
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")

    rule: Annotated[Choice, Of("decision_rule")] = Field(
        default_factory=partial(choose, "decision_rule", "posterior_predictive")
    )
    score: Annotated[Choice, Of("uncertainty_score")] = Field(
        default_factory=partial(choose, "uncertainty_score", "entropy")
    )
    threshold: float = math.inf
    fallback: str = SOURCE_0
    gate_samples: int = Field(default=0, ge=0, le=65_536)
    coverage: float = 1.0
    misrouting: MisroutingProbability | None = None
    reliability: Reliability | None = None
    certificate: Certificate | None = None

    @field_validator("rule", mode="before")
    @classmethod
    def _rule(cls, value: Any) -> Any:
        return describe("decision_rule", value) if isinstance(value, DecisionRule) else value

    @field_validator("score", mode="before")
    @classmethod
    def _score(cls, value: Any) -> Any:
        return describe("uncertainty_score", value) if isinstance(value, UncertaintyScore) else value

    @field_validator("score")
    @classmethod
    def _deployable(cls, value: Choice) -> Choice:
        if value.factory is not None and not build(value).deployable:
            raise ValueError(f"{value.kind!r} has to be fitted first; expected what choose_deployment makes of it")
        return value

    @field_validator("misrouting", mode="before")
    @classmethod
    def _misrouting(cls, value: Any) -> Any:
        # Routers once kept a curve over their uncertainty score, which said nothing of the route.
        return None if isinstance(value, Mapping) and "scores" in value else value

    @field_validator("certificate", mode="before")
    @classmethod
    def _certificate(cls, value: Any) -> Any:
        return Certificate.from_dict(dict(value)) if isinstance(value, Mapping) else value

    @field_validator("threshold")
    @classmethod
    def _number(cls, value: float) -> float:
        if math.isnan(value):
            raise ValueError("the threshold is NaN; expected a number, or infinity to never abstain")
        return value

    @property
    def method(self) -> str:
        """What evaluations call predictions by the rule."""
        return method_of(self.rule)

    @property
    def never_falls_back(self) -> bool:
        """Whether no task can exceed the threshold, so that no score need be computed for that."""
        return self.threshold == math.inf

    @property
    def never_abstains(self) -> bool:
        """Whether every task is reliable."""
        return self.never_falls_back if self.reliability is None else self.reliability.tolerance == math.inf

    @cached_property
    def scorer(self) -> UncertaintyScore:
        """The score, built."""
        made: UncertaintyScore = build(self.score)
        return made

    @property
    def looks_at_queries(self) -> bool:
        """Whether it can only be said for a batch of queries whether they fall back."""
        return self.scorer.looks_at_queries

    @property
    def reads(self) -> tuple[UncertaintyScore, ...]:
        """All scores that its decisions read, and those that they are."""
        decisions = [self.scorer, *(() if self.reliability is None else (self.reliability.predictor,))]
        return tuple(one for decision in decisions for one in (*decision.reads, decision))

    def uncertainty(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """U ``(n,)`` from the values of scores, name -> ``(n,)``.

        Raises:
            ValueError: when a score that it reads is missing or NaN.
        """
        return self.scorer.of_values(scores)

    def falls_back(self, scores: Mapping[str, Numbers]) -> Any:
        """``(n,)`` bool: which tasks use the fallback; arguments as in :meth:`uncertainty`."""
        return ~accepted_tasks(self.uncertainty(scores), self.threshold)

    def abstains(self, scores: Mapping[str, Numbers]) -> Any:
        """``(n,)`` bool: which tasks are not reliable; without a reliability those that fall back."""
        return self.falls_back(scores) if self.reliability is None else self.reliability.doubts(scores)

    def decider(self, model: RoutedModel, catalog: Catalog | None = None) -> DecisionRule:
        """The rule, built; rules may name routings of the model and the catalog."""
        made: DecisionRule = build(self.rule, {"named_routings": NamedRoutings(model, catalog)})
        return made

    @cached_property
    def predictive(self) -> PosteriorPredictive:
        """The posterior predictive that scores look at: the rule where it is one, else the default one."""
        made: PosteriorPredictive = build(self.rule) if self.method == "posterior_predictive" else PosteriorPredictive()
        return made

    def fallback_rule(self, model: RoutedModel, catalog: Catalog | None = None) -> DecisionRule:
        """The rule of tasks that fall back.

        Raises:
            ValueError: for a fallback that neither model nor catalog have.
        """
        routings = NamedRoutings(model, catalog)
        if self.fallback not in list(routings):
            raise ValueError(f"fallback is {self.fallback!r}; expected one of {', '.join(routings)}")
        made: DecisionRule = find("decision_rule", "fallback")(routings, self.fallback)
        return made

    def but(self, **changes: Any) -> Deployment:
        """The same with other fields."""
        return Deployment(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an infinite threshold is "Infinity"."""
        data: dict[str, Any] = json.loads(self.model_dump_json())
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, own: Mapping[str, Factory] | None = None) -> Deployment:
        """What :meth:`to_dict` wrote.

        Args:
            data: plain data.
            own: kind -> class of the user's own, in place of one that the data name by file; no file is ever run.
        """
        return cls.model_validate(data, context={"own": own or {}})


def method_of(rule: Choice) -> str:
    """What evaluations call predictions by a rule: its registered name, or the name of its class."""
    factory = rule.factory or find("decision_rule", rule.kind)
    return name_of("decision_rule", factory) or factory.__name__
