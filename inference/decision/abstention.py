"""Abstention: which score says that a task may go wrong, from where on the fallback takes over, and with what warrant.

Scores and losses of validation episodes -> a score, chosen by AURC -> a threshold -> an :class:`AbstentionRule`, which
is saved with the router. A threshold with a guarantee comes from
:func:`~pyro_smat.inference.evaluation.certification.abstain_with_guarantee`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_smat.certificates import Certificate
from pyro_smat.inference.decision.fallback import SOURCE_0
from pyro_smat.inference.decision.isotonic import IsotonicCalibration
from pyro_smat.inference.decision.risk_predictor import RiskPredictor, cross_fitted_risk
from pyro_smat.inference.decision.scores import QUERY_SCORES, SCORES, SUPPORT_SCORES
from pyro_smat.inference.assembly.config import Decision
from pyro_smat.metrics.arrays import FloatArray, Numbers, float_array
from pyro_smat.metrics.selective import aurc

if TYPE_CHECKING:
    from pyro_smat.inference.evaluation.evaluation import Evaluation

LEARNED = "learned"
_POOLS = {"": SUPPORT_SCORES, " with queries": SCORES}
_NEVER, _ALWAYS = "never", "always"  # JSON has no infinity


@dataclass(frozen=True)
class AbstentionRule:
    """Abstain when the score of a task exceeds the threshold.

    Attributes:
        score: one of :data:`~pyro_smat.inference.decision.scores.SCORES`, or "learned".
        threshold: eta; infinity never abstains, minus infinity always.
        coverage: the share of validation episodes that the threshold accepted.
        fallback: what abstaining tasks use: "source 0", "prior mean", or the name of a source or of a routing of the
            catalog.
        predictor: what score "learned" is, None for all others.
        misrouting: from the score to the probability of misrouting, where the true routes of validation were known.
        certificate: of the loss of accepted tasks, where the threshold was chosen with a guarantee.

    Raises:
        ValueError: for an unknown score, a NaN threshold, or a predictor that is missing or not used.
    """

    score: str = "entropy"
    threshold: float = math.inf
    coverage: float = 1.0
    fallback: str = SOURCE_0
    predictor: RiskPredictor | None = None
    misrouting: IsotonicCalibration | None = None
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if self.score not in (*SCORES, LEARNED):
            raise ValueError(f"score is {self.score!r}; expected one of {', '.join((*SCORES, LEARNED))}")
        if (self.score == LEARNED) != (self.predictor is not None):
            raise ValueError(
                f"score is {self.score!r} and the predictor {self.predictor}; 'learned', and no other, has one"
            )
        if math.isnan(self.threshold):
            raise ValueError("the threshold is NaN; expected a number, or infinity to never abstain")

    @property
    def needs(self) -> tuple[str, ...]:
        """The scores that it reads."""
        return (self.score,) if self.predictor is None else self.predictor.names

    @property
    def looks_at_queries(self) -> bool:
        """Whether the decision can only be made for a batch of queries."""
        return any(name in QUERY_SCORES for name in self.needs)

    def uncertainty(self, scores: Mapping[str, Numbers]) -> FloatArray:
        """U ``(n,)`` from scores, each ``(n,)``.

        Raises:
            ValueError: when a score that it reads is missing or NaN.
        """
        if self.predictor is not None:
            return self.predictor.predict(scores)
        if self.score not in scores:
            raise ValueError(f"scores hold {sorted(scores)}; expected {self.score!r}")
        return float_array(scores[self.score], f"scores {self.score!r}", finite=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        threshold: float | str = self.threshold
        if math.isinf(self.threshold):
            threshold = _NEVER if self.threshold > 0 else _ALWAYS
        return {
            "score": self.score,
            "threshold": threshold,
            "coverage": self.coverage,
            "fallback": self.fallback,
            "predictor": None if self.predictor is None else self.predictor.to_dict(),
            "misrouting": None if self.misrouting is None else self.misrouting.to_dict(),
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AbstentionRule:
        """What :meth:`to_dict` wrote."""
        threshold = {_NEVER: math.inf, _ALWAYS: -math.inf}.get(data["threshold"], data["threshold"])
        predictor, misrouting, certificate = (data[k] for k in ("predictor", "misrouting", "certificate"))
        return cls(
            data["score"],
            threshold,
            data["coverage"],
            data["fallback"],
            None if predictor is None else RiskPredictor.from_dict(predictor),
            None if misrouting is None else IsotonicCalibration.from_dict(misrouting),
            None if certificate is None else Certificate.from_dict(certificate),
        )


ALWAYS_ROUTE = AbstentionRule()


@dataclass(frozen=True)
class ChosenScore:
    """The score that orders validation episodes best.

    Attributes:
        name: of the score.
        values: ``(n,)`` on the episodes it was chosen on; of a learned score, from predictors that had not seen them.
        predictor: fitted on all of them, of a learned score.
        aurc: of every score that competed, in units of the loss.
    """

    name: str
    values: FloatArray
    predictor: RiskPredictor | None = None
    aurc: Mapping[str, float] = field(default_factory=dict)

    def rule(self, threshold: float, fallback: str = SOURCE_0, **more: Any) -> AbstentionRule:
        """The rule with this score; its coverage is that of the episodes the score was chosen on."""
        coverage = float((self.values <= threshold).mean())
        return AbstentionRule(self.name, threshold, coverage, fallback, self.predictor, **more)


def choose_score(scores: Mapping[str, FloatArray], losses: Numbers, wanted: str = "auto") -> ChosenScore:
    """The score with the lowest AURC on validation episodes.

    A learned predictor competes by its cross-fitted values: on its own episodes it would always look best.

    Args:
        scores: name -> ``(n,)``, those of :data:`~pyro_smat.inference.decision.scores.SCORES`.
        losses: ``(n,)``.
        wanted: "auto" and "auto with queries": all scores (of the support; of support and queries), and the predictor
            learned from them; "learned" and "learned with queries": that predictor alone; or the name of a score.

    Raises:
        ValueError: for an unknown name, NaN, or fewer than two episodes.
    """
    x = float_array(losses, "losses")
    kind, _, rest = wanted.partition(" with queries")
    pool = _POOLS.get(wanted.removeprefix(kind)) if kind in ("auto", LEARNED) and not rest else None
    if pool is None and wanted not in scores:
        known = ("auto", "auto with queries", LEARNED, f"{LEARNED} with queries", *scores)
        raise ValueError(f"score is {wanted!r}; expected one of {', '.join(known)}")
    candidates = {name: scores[name] for name in ((wanted,) if pool is None else pool) if kind != LEARNED}
    readable: dict[str, FloatArray] = {}
    if pool is not None:
        readable = {name: scores[name] for name in pool if np.isfinite(scores[name]).all()}
        candidates[LEARNED] = cross_fitted_risk(readable, x)
    areas = {name: aurc(values, x) for name, values in candidates.items()}
    best = min(areas, key=lambda name: areas[name])
    predictor = RiskPredictor.fit(readable, x) if best == LEARNED else None
    return ChosenScore(best, candidates[best], predictor, areas)


def coverage_threshold(values: Numbers, coverage: float) -> float:
    """The smallest threshold that accepts at least a share ``coverage`` of the episodes.

    Args:
        values: U ``(n,)`` of validation episodes.
        coverage: in (0, 1].

    Raises:
        ValueError: for a coverage outside (0, 1], or NaN.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is {coverage!r}; expected a share in (0, 1]")
    u = np.sort(float_array(values, "values", finite=False))
    return float(u[max(1, math.ceil(coverage * len(u) - 1e-9)) - 1])


def least_loss_threshold(values: Numbers, losses: Numbers, fallback_losses: Numbers, coverage: float = 0.0) -> float:
    """The threshold with the lowest mean loss of the whole, routed or fallen back; infinity where none pays.

    Args:
        values: U ``(n,)`` of validation episodes.
        losses: ``(n,)`` of the routed predictions.
        fallback_losses: ``(n,)`` of the fallback, on the same episodes.
        coverage: least share of episodes to accept.

    Raises:
        ValueError: for NaN.
    """
    u, ours, theirs = (
        float_array(v, what, finite=what != "values")
        for v, what in ((values, "values"), (losses, "losses"), (fallback_losses, "fallback losses"))
    )
    best, least = math.inf, float(ours.mean())
    for threshold in np.unique(u):
        kept = u <= threshold
        loss = float(np.where(kept, ours, theirs).mean())
        if kept.mean() >= coverage and loss < least:
            best, least = float(threshold), loss
    return best


def choose_abstention(decision: Decision, validation: Evaluation) -> AbstentionRule:
    """Score, threshold and calibration as a config says, from validation episodes.

    Args:
        decision: names the score, the way to the threshold, and the fallback.
        validation: with methods ``decision.rule`` and "fallback", the latter by ``decision.fallback``.
    """
    losses = validation.loss(decision.rule)
    chosen = choose_score(validation.scores, losses, decision.score)
    if decision.threshold == "coverage":
        threshold = coverage_threshold(chosen.values, decision.coverage)
    else:
        threshold = least_loss_threshold(chosen.values, losses, validation.loss("fallback"), coverage=decision.coverage)
    known = validation.known_source >= 0
    misrouting = None
    if known.any() and np.isfinite(chosen.values[known]).all():
        wrong = validation.weights.argmax(1) != validation.known_source
        misrouting = IsotonicCalibration.fit(chosen.values[known], wrong[known])
    return chosen.rule(threshold, decision.fallback, misrouting=misrouting)
