"""Choosing a deployment as the settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_evaluation import made_evaluation

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.decision import DecisionSettings, choose_deployment, initial_deployment
from pyro_smat.inference.decision.scores import LearnedRisk
from pyro_smat.inference.decision.scores.standard import score_names
from pyro_smat.inference.decision.thresholds import least_loss_threshold
from pyro_smat.inference.evaluation import abstention_outcome

RULE = "posterior_predictive"


def test_the_deployment_is_chosen_as_the_settings_say() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.random(300)
    noise = {name: generator.random(300) for name in score_names()}
    evaluation = made_evaluation(hardness, generator, noise | {"entropy": hardness})
    route = np.arange(300) % 2
    evaluation = replace(evaluation, route=route, source_of_route=(0, 1))
    found = choose_deployment(DecisionSettings(score="entropy", fallback="prior mean", gate_samples=2), evaluation)
    outcome = abstention_outcome(evaluation, found)
    assert (found.score.kind, found.fallback, found.gate_samples) == ("entropy", "prior mean", 2)
    assert found.threshold == least_loss_threshold(hardness, evaluation.loss(RULE), evaluation.loss("fallback"), 0.5)
    assert outcome.coverage == pytest.approx(found.coverage)
    assert outcome.system_loss < evaluation.loss(RULE).mean()
    assert found.misrouting is not None
    np.testing.assert_allclose(found.misrouting.probability(hardness).mean(), route.mean())  # all weight is on source 0
    half = choose_deployment(DecisionSettings(score="entropy", threshold="coverage", coverage=0.6), evaluation)
    assert half.coverage == pytest.approx(0.6)
    learned = choose_deployment(DecisionSettings(score={"kind": "learned", "queries": True}), evaluation)
    assert isinstance(learned.scorer, LearnedRisk)
    assert len(learned.scorer.slopes) == len(score_names())
    assert choose_deployment(DecisionSettings(), evaluation).score.kind in ("entropy", "learned")


def test_settings_of_a_config() -> None:
    config = load_config(None, ["decision.score={kind='auto', queries=true}", "decision.rule={kind='top-k', k=3}"])
    assert config.decision.score.options["queries"]
    assert config.decision.rule.to_dict() == {"kind": "top_k", "k": 3}
    start = initial_deployment(config.decision)
    assert (start.rule, start.never_abstains) == (config.decision.rule, True)
    with pytest.raises(ValueError, match=r"decision.score.*no uncertainty_score 'entropie'; did you mean 'entropy'"):
        load_config(None, ["decision.score=entropie"])
    with pytest.raises(ValueError, match="coverage"):
        load_config(None, ["decision.coverage=0"])
