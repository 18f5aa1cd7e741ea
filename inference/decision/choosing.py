"""Choosing a deployment as a config says, from validation episodes: when tasks fall back, abstain, and are misrouted.

A tolerance with a guarantee comes from :func:`~pyro_smat.inference.evaluation.guarantee.abstain_with_guarantee`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.reliability import Reliability, default_tolerance
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.decision.settings import DecisionSettings
from pyro_smat.inference.decision.thresholds import coverage_threshold, least_loss_threshold
from pyro_smat.registry import build

if TYPE_CHECKING:
    from pyro_smat.inference.evaluation.evaluation import Evaluation

CLEAN = "clean"  # the condition that the default tolerance looks at


def initial_deployment(settings: DecisionSettings) -> Deployment:
    """What a config says before validation: its rule, which neither falls back nor abstains."""
    score: UncertaintyScore = build(settings.score)
    known = {"score": settings.score} if score.deployable else {}
    return Deployment(rule=settings.rule, fallback=settings.fallback, gate_samples=settings.gate_samples, **known)


def scores_to_choose_from(settings: DecisionSettings) -> tuple[UncertaintyScore, ...]:
    """The scores that :func:`choose_deployment` reads, each once."""
    found = {score.name: score for part in (settings.score, settings.risk) for score in build(part).reads}
    return tuple(found.values())


def choose_deployment(settings: DecisionSettings, validation: Mapping[str, Evaluation] | Evaluation) -> Deployment:
    """Score, threshold, tolerance and calibration as a config says, from validation episodes.

    Everything is chosen pooled over the conditions, each of which counts by its number of episodes.

    Args:
        settings: name the score, the way to the threshold, the fallback, the risk and its tolerance.
        validation: condition -> evaluation of :func:`initial_deployment`, with the values of
            :func:`scores_to_choose_from`; or one evaluation.

    Raises:
        ValueError: for no evaluation.
    """
    parts = dict(validation) if isinstance(validation, Mapping) else {"": validation}
    if not parts:
        raise ValueError("got no validation episodes; expected at least one condition")
    start = initial_deployment(settings)
    scores = {name: _joined([e.scores[name] for e in parts.values()]) for name in next(iter(parts.values())).scores}
    losses = _joined([e.loss(start.method) for e in parts.values()])
    fallback_losses = _joined([e.loss("fallback") for e in parts.values()])
    wanted: UncertaintyScore = build(settings.score)
    order = np.random.default_rng(0).permutation(len(losses))  # cross-fitting wants the conditions in random order
    found = wanted.fit({name: values[order] for name, values in scores.items()}, losses[order])
    if settings.threshold == "coverage":
        threshold = coverage_threshold(found.values, settings.coverage)
    else:
        threshold = least_loss_threshold(
            found.values, losses[order], fallback_losses[order], coverage=settings.coverage
        )
    return start.but(
        score=settings.score if found.score is wanted else found.score,
        threshold=threshold,
        coverage=float((found.values <= threshold).mean()),
        misrouting=_misrouting(parts),
        reliability=_reliability(settings, start.method, parts, scores, order),
    )


def _misrouting(parts: Mapping[str, Evaluation]) -> MisroutingProbability | None:
    """The calibrated probability of misrouting; None where no true route is known."""
    known = _joined([e.known_source >= 0 for e in parts.values()])
    if not known.any():
        return None
    doubts = _joined([1.0 - e.weights.max(1) for e in parts.values()])
    wrong = _joined([e.weights.argmax(1) != e.known_source for e in parts.values()])
    return MisroutingProbability.fit(np.clip(doubts[known], 0.0, 1.0), wrong[known])


def _reliability(
    settings: DecisionSettings,
    method: str,
    parts: Mapping[str, Evaluation],
    scores: Mapping[str, np.ndarray],
    order: np.ndarray,
) -> Reliability:
    wanted: UncertaintyScore = build(settings.risk)
    errors = _joined([1.0 - e.accuracy(method) for e in parts.values()])
    found = wanted.fit({name: values[order] for name, values in scores.items()}, errors[order])
    values = np.empty_like(found.values)
    values[order] = found.values
    if settings.tolerance is None:
        names = [name for name, e in parts.items() for _ in range(len(e))]
        clean = np.array([name in (CLEAN, "") for name in names])
        tolerance = default_tolerance(values[clean])
    else:
        tolerance = settings.tolerance
    return Reliability(
        risk=settings.risk if found.score is wanted else found.score,
        tolerance=tolerance,
        coverage=float((values <= tolerance).mean()),
        learned_from=tuple(name for name in parts if name),
    )


def _joined(values: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(values)
