"""Deployment: one frozen object that survives JSON, classes of one's own and routers of format 3 included."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_router

from pyro_smat.certificates import Certificate
from pyro_smat.inference.decision import Deployment, Mixture
from pyro_smat.inference.decision.format_3 import decision_from_format_3, deployment_from_format_3
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.decision.rules import DecisionRule, PosteriorPredictive, TopK
from pyro_smat.inference.decision.scores import Disagreement, Entropy, LearnedRisk
from pyro_smat.inference.decision.settings import DecisionSettings
from pyro_smat.registry import build

CERTIFICATE = Certificate(0.1, 0.07, 0.1, 200, "selective risk", "learn then test, betting", loss="error")
PREDICTOR = LearnedRisk(
    scores=(Entropy(), Disagreement(num_samples=4)),
    centre=(0.5, 0.1),
    scale=(0.2, 0.05),
    slopes=(0.3, 0.4),
    intercept=1,
)


@pytest.mark.parametrize(
    "deployment",
    [
        Deployment(),
        Deployment(score="support_loss", threshold=-math.inf, fallback="prior mean", certificate=CERTIFICATE),
        Deployment(
            rule=TopK(3),
            score=PREDICTOR,
            threshold=0.25,
            coverage=0.5,
            gate_samples=2,
            misrouting=MisroutingProbability(1.4, 0.6, 288),
            reliability=Reliability(risk=PREDICTOR, tolerance=0.1, coverage=0.8, learned_from=("clean", "confounding")),
        ),
    ],
)
def test_it_survives_json(deployment: Deployment) -> None:
    again = Deployment.from_dict(json.loads(json.dumps(deployment.to_dict(), allow_nan=False)))
    assert again == deployment
    assert again.scorer == deployment.scorer
    assert again.certificate == deployment.certificate
    assert deployment.but(threshold=1.0) == Deployment.from_dict(deployment.to_dict() | {"threshold": 1.0})


@dataclass(frozen=True)
class Halves(DecisionRule):
    """A rule of the user's own: two routings in equal parts."""

    second: str = "mode"

    def __call__(self, posterior: Any, batch: Any = None, *, generator: torch.Generator | None = None) -> Mixture:
        return Mixture.equal(torch.stack([posterior.mean, getattr(posterior, self.second)]))


def test_a_rule_of_ones_own_is_named_by_its_file_and_never_run() -> None:
    deployment = Deployment(rule=Halves("mean"))
    data = deployment.to_dict()
    assert data["rule"] == {"kind": "test_deployment.py:Halves", "second": "mean"}
    assert deployment.method == "Halves"
    again = Deployment.from_dict(data, own={"decision_rule": Halves})
    assert build(again.rule) == Halves("mean")
    with pytest.raises(ValueError, match=r"decision_rule of your own, test_deployment.py:Halves.*pass own="):
        Deployment.from_dict(data).decider(tiny_router(tiny_config()).model)


def test_what_it_reads_and_runs() -> None:
    deployment = Deployment(rule={"kind": "ensemble", "num_samples": 5}, score=PREDICTOR)
    assert deployment.looks_at_queries
    assert deployment.predictive == PosteriorPredictive(5)
    assert Deployment(rule="mean").predictive == PosteriorPredictive()
    assert deployment.never_falls_back
    assert deployment.never_abstains
    scores = {"entropy": [0.4, 0.5, 0.6], "support_loss": [3.0, 2.0, 1.0]}
    assert Deployment(threshold=0.5).falls_back(scores).tolist() == [False, False, True]
    assert Deployment(threshold=0.5).abstains(scores).tolist() == [False, False, True]  # nothing else is said of doubt
    both = Deployment(threshold=0.5, reliability=Reliability(risk="support_loss", tolerance=2.5))
    assert both.falls_back(scores).tolist() == [False, False, True]
    assert both.abstains(scores).tolist() == [True, False, False]
    assert not Deployment(reliability=Reliability(risk="support_loss", tolerance=2.5)).never_abstains
    assert {score.name for score in both.reads} == {"entropy", "support_loss"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "margin"}, "score.*there is no uncertainty_score 'margin'"),
        ({"score": "learned"}, "score.*'learned' has to be fitted first"),
        ({"score": "auto"}, "score.*'auto' has to be fitted first"),
        ({"threshold": math.nan}, "the threshold is NaN; expected a number"),
        ({"rule": {"kind": "mean", "k": 1}}, "rule.*'mean' has no option 'k'"),
        ({"gate_samples": -1}, "gate_samples.*Input should be greater than or equal to 0"),
        ({"reliability": {"risk": "learned"}}, "risk.*'learned' has to be fitted first"),
        ({"reliability": {"risk": "entropy", "tolerance": math.nan}}, "the tolerance is NaN"),
        ({"treshold": 1.0}, "treshold.*Extra inputs are not permitted"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Deployment(**fields)


def test_an_unknown_fallback_is_refused_where_the_sources_are_known() -> None:
    router = tiny_router(tiny_config())
    with pytest.raises(ValueError, match="fallback is 'z'; expected one of source 0, prior mean, a, b, c"):
        Deployment(fallback="z").fallback_rule(router.model, router.catalog)


DECISION = {"rule": "top-k", "draws": 5, "k": 3, "masks": 2, "score": "learned with queries"} | {
    "threshold": "coverage",
    "coverage": 0.7,
    "fallback": "b",
}


def test_routers_of_format_3() -> None:
    numbers = {"centre": [0.5, 0.1], "scale": [0.2, 0.05], "slopes": [0.3, 0.4], "intercept": 1.0}
    old = {
        "score": "learned",
        "threshold": "never",
        "coverage": 0.9,
        "fallback": "b",
        "predictor": {"names": ["KL to the prior", "discretised entropy"], **numbers},
        "misrouting": {"scores": [0.0, 1.0], "probabilities": [0.1, 0.9]},
        "certificate": CERTIFICATE.to_dict(),
    }
    found = deployment_from_format_3(old, DECISION)
    assert build(found.rule) == TopK(3)
    assert isinstance(found.scorer, LearnedRisk)
    assert [score.name for score in found.scorer.scores] == ["kl_to_prior", "argmax_entropy"]
    assert found.uncertainty({"kl_to_prior": [0.5], "argmax_entropy": [0.15]})[0] == pytest.approx(1.4)
    assert (found.gate_samples, found.fallback, found.coverage, found.never_abstains) == (2, "b", 0.9, True)
    assert found.certificate == CERTIFICATE
    assert found.misrouting is None  # format 3 kept a curve over its score, which says nothing of the route
    assert Deployment.from_dict(found.to_dict() | {"misrouting": old["misrouting"]}).misrouting is None
    plain = deployment_from_format_3(old | {"score": "confidence", "predictor": None, "threshold": "always"}, DECISION)
    assert (plain.score.kind, plain.threshold) == ("least_confidence", -math.inf)
    settings = DecisionSettings(**decision_from_format_3(DECISION))
    assert settings.score.options["queries"]
    assert settings.rule == found.rule
    assert decision_from_format_3(DECISION | {"rule": "ensemble"})["rule"] == {
        "kind": "posterior_predictive",
        "num_samples": 5,
    }


@pytest.mark.parametrize("score", [-math.inf, 0.0, math.inf])
def test_a_threshold_of_minus_infinity_accepts_nothing(score: float) -> None:
    nothing = Deployment(score=Entropy(), threshold=-math.inf)
    assert nothing.falls_back({"entropy": np.array([score])}).all()


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 NaN value"):
        Deployment(score=Entropy(), threshold=math.inf).falls_back({"entropy": np.array([math.nan, 1.0])})
