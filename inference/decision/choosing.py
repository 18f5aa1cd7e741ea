"""Choosing a deployment: score, threshold and probability of misrouting as a config says, from validation episodes.

A threshold with a guarantee comes from :func:`~pyro_smat.inference.evaluation.guarantee.abstain_with_guarantee`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.decision.settings import DecisionSettings
from pyro_smat.inference.decision.thresholds import coverage_threshold, least_loss_threshold
from pyro_smat.registry import build

if TYPE_CHECKING:
    from pyro_smat.inference.evaluation.evaluation import Evaluation


def initial_deployment(settings: DecisionSettings) -> Deployment:
    """What a config says before validation: its rule, which never abstains."""
    score: UncertaintyScore = build(settings.score)
    known = {"score": settings.score} if score.deployable else {}
    return Deployment(rule=settings.rule, fallback=settings.fallback, gate_samples=settings.gate_samples, **known)


def choose_deployment(settings: DecisionSettings, validation: Evaluation) -> Deployment:
    """Score and threshold as a config says, from validation episodes.

    Args:
        settings: name the score, the way to the threshold, and the fallback.
        validation: of :func:`initial_deployment`, with the values of the scores that ``settings.score`` reads.
    """
    start = initial_deployment(settings)
    losses = validation.loss(start.method)
    wanted: UncertaintyScore = build(settings.score)
    found = wanted.fit(validation.scores, losses)
    if settings.threshold == "coverage":
        threshold = coverage_threshold(found.values, settings.coverage)
    else:
        threshold = least_loss_threshold(found.values, losses, validation.loss("fallback"), coverage=settings.coverage)
    known = validation.known_source >= 0
    misrouting = None
    if known.any() and np.isfinite(found.values[known]).all():
        wrong = validation.weights.argmax(1) != validation.known_source
        misrouting = MisroutingProbability.fit(found.values[known], wrong[known])
    return start.but(
        score=settings.score if found.score is wanted else found.score,
        threshold=threshold,
        coverage=float((found.values <= threshold).mean()),
        misrouting=misrouting,
    )
