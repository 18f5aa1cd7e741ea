"""Routers of format 3 kept an abstention rule and a decision section apart; together they are a Deployment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyro_smat.inference.decision.deployment import Deployment

_RULES = {"ensemble": "posterior_predictive", "top-k": "top_k"}
_SCORES = {
    "confidence": "least_confidence",
    "KL to the prior": "kl_to_prior",
    "discretised entropy": "argmax_entropy",
}


def deployment_from_format_3(abstention: Mapping[str, Any], decision: Mapping[str, Any]) -> Deployment:
    """The deployment that a router of format 3 meant.

    Args:
        abstention: of its router.json.
        decision: ``config["decision"]`` of its router.json.
    """
    settings = decision_from_format_3(decision)
    predictor, threshold = abstention["predictor"], abstention["threshold"]
    if predictor is None:
        score: Any = _score(abstention["score"])
    else:
        numbers = {key: predictor[key] for key in ("centre", "scale", "slopes", "intercept")}
        score = {"kind": "learned", "scores": [_score(name) for name in predictor["names"]], **numbers}
    return Deployment(
        rule=settings["rule"],
        score=score,
        threshold={"never": math.inf, "always": -math.inf}.get(threshold, threshold),
        fallback=abstention["fallback"],
        gate_samples=settings["gate_samples"],
        coverage=abstention["coverage"],
        certificate=abstention["certificate"],
    )


def decision_from_format_3(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The values of :class:`~pyro_smat.inference.decision.settings.DecisionSettings` in a config of format 3."""
    kind = _RULES.get(decision["rule"], decision["rule"])
    options = {"posterior_predictive": {"num_samples": decision["draws"]}, "top_k": {"k": decision["k"]}}
    name, _, queries = decision["score"].partition(" with ")
    wanted = {"kind": name, "queries": bool(queries)} if name in ("auto", "learned") else _score(name)
    return {
        "rule": {"kind": kind, **options.get(kind, {})},
        "gate_samples": decision["masks"],
        "score": wanted,
        **{key: decision[key] for key in ("threshold", "coverage", "fallback")},
    }


def _score(name: str) -> str:
    return _SCORES.get(name, name.replace(" ", "_"))
