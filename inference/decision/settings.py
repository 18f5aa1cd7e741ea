"""DecisionSettings: what a config says of decisions, before any episode has been looked at."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pyro_smat.inference.decision.named_routings import SOURCE_0
from pyro_smat.registry import Choice, Of, choose

RISK_READS = ("least_confidence", "entropy", "support_loss")  # known from the posterior and the evidence alone


class DecisionSettings(BaseModel):
    """The rule, and how it is decided when a task falls back and when it abstains.

    Attributes:
        rule: a decision rule (:mod:`pyro_smat.inference.decision.rules`).
        gate_samples: predictions are averaged over so many samples of the experts' gates; 0 takes the deployed masks.
        score: an uncertainty score (:mod:`pyro_smat.inference.decision.scores`); "auto" takes the one with the lowest
            AURC on validation episodes, "learned" fits one to them; ``{kind = "auto", queries = true}`` may also look
            at the queries, so that every batch of queries is decided on by itself.
        threshold: of falling back: "least_loss" of the whole on validation episodes among thresholds that keep at least
            ``coverage`` of them, never falling back where that does not pay; or the one that keeps "coverage".
        coverage: share of validation episodes, in (0, 1].
        fallback: what tasks that fall back use: "source 0", "prior mean", a source, or a routing of the catalog.
        risk: predicts the share of a task's answers that will be wrong, from these scores; fitted to validation
            episodes of all conditions together (those that the router is trained on, and clean ones).
        tolerance: share of wrong answers; tasks of which more is predicted abstain. None: a tenth, or what 95% of the
            clean validation tasks stay below, where that is more.

    Example:
        >>> DecisionSettings(rule={"kind": "top-k", "k": 3}).rule.to_dict()
        {'kind': 'top_k', 'k': 3}
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    rule: Annotated[Choice, Of("decision_rule")] = Field(
        default_factory=partial(choose, "decision_rule", "posterior_predictive")
    )
    gate_samples: int = Field(default=0, ge=0)
    score: Annotated[Choice, Of("uncertainty_score")] = Field(
        default_factory=partial(choose, "uncertainty_score", "auto")
    )
    threshold: Literal["least_loss", "coverage"] = "least_loss"
    coverage: float = Field(default=0.5, gt=0, le=1)
    fallback: str = SOURCE_0
    risk: Annotated[Choice, Of("uncertainty_score")] = Field(
        default_factory=partial(choose, "uncertainty_score", {"kind": "learned", "scores": list(RISK_READS)})
    )
    tolerance: float | None = Field(default=None, gt=0, le=1)
