"""The scores that compete where none is named: those of the library in their order, then all that are registered."""

from __future__ import annotations

from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.registry import build, choose, names

ORDER = (  # in which they draw from a generator
    "least_confidence",
    "entropy",
    "kl_to_prior",
    "variance",
    "argmax_entropy",
    "support_loss",
    "composed_support_loss",
    "predictive_entropy",
    "disagreement",
)
FITTED = ("auto", "learned", "novelty")  # made of the others


def score_names() -> tuple[str, ...]:
    """Names of all scores that stand by themselves."""
    return (*ORDER, *(name for name in names("uncertainty_score") if name not in (*ORDER, *FITTED)))


def candidates(*, queries: bool) -> tuple[UncertaintyScore, ...]:
    """All scores that stand by themselves, with or without those that look at queries."""
    made: tuple[UncertaintyScore, ...] = tuple(build(choose("uncertainty_score", name)) for name in score_names())
    return tuple(score for score in made if queries or not score.looks_at_queries)
