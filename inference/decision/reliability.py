"""Reliability: whether a task's answers can be relied on; another question than whether the fallback would do better.

A risk predictor says what share of a task's answers will be wrong; tasks of which it says more than a tolerance are
doubted, and abstain. Part of a :class:`~pyro_smat.inference.decision.deployment.Deployment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pyro_smat.certificates.certificate import accepted_tasks
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.metrics.arrays import FloatArray, Numbers
from pyro_smat.registry import Choice, Of, build, describe

CLEAN_SHARE = 0.95  # of clean validation tasks that the default tolerance keeps
LEAST_TOLERANCE = 0.1  # a tenth of the answers


class Reliability(BaseModel):
    """A risk, and the most of it that a task may have to be relied on.

    Attributes:
        risk: an uncertainty score, fitted where it has to be. The learned one predicts the share of wrong answers.
        tolerance: tasks with more risk than this are not reliable; infinity relies on all, minus infinity on none.
        coverage: share of validation episodes that are reliable.
        learned_from: the conditions of the validation episodes.

    Raises:
        ValueError: for an unknown score, one that has not been fitted, or a NaN tolerance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")

    risk: Annotated[Choice, Of("uncertainty_score")]
    tolerance: float = math.inf
    coverage: float = Field(default=1.0, ge=0, le=1)
    learned_from: tuple[str, ...] = ()

    @field_validator("risk", mode="before")
    @classmethod
    def _risk(cls, value: Any) -> Any:
        return describe("uncertainty_score", value) if isinstance(value, UncertaintyScore) else value

    @field_validator("risk")
    @classmethod
    def _deployable(cls, value: Choice) -> Choice:
        if value.factory is not None and not build(value).deployable:
            raise ValueError(f"{value.kind!r} has to be fitted first; expected what choose_deployment makes of it")
        return value

    @field_validator("tolerance")
    @classmethod
    def _number(cls, value: float) -> float:
        if math.isnan(value):
            raise ValueError("the tolerance is NaN; expected a number, or infinity to rely on every task")
        return value

    @cached_property
    def predictor(self) -> UncertaintyScore:
        """The risk, built."""
        made: UncertaintyScore = build(self.risk)
        return made

    @property
    def is_error(self) -> bool:
        """Whether the risk is a predicted share of wrong answers, so that it reads as one."""
        return self.predictor.predicts_error

    def doubts(self, scores: Mapping[str, Numbers]) -> Any:
        """``(n,)`` bool: which tasks are not reliable, from the values of the scores that the risk reads."""
        return ~accepted_tasks(self.predictor.of_values(scores), self.tolerance)


def default_tolerance(predicted_of_clean: FloatArray) -> float:
    """A tenth of the answers, or where that is more, what 95% of the clean validation tasks stay below.

    Args:
        predicted_of_clean: ``(n,)`` predicted shares of wrong answers of clean validation episodes.
    """
    if not len(predicted_of_clean):
        return LEAST_TOLERANCE
    return max(LEAST_TOLERANCE, float(np.quantile(predicted_of_clean, CLEAN_SHARE)))
