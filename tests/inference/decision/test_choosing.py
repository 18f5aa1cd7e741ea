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
from pyro_smat.inference.evaluation import Evaluation, abstention_outcome, doubt_outcome

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
    assert found.misrouting.episodes == 300
    np.testing.assert_allclose(found.misrouting.probability([0.4]), route.mean(), atol=0.02)  # all put .4 elsewhere
    assert found.reliability is not None
    assert found.reliability.is_error
    half = choose_deployment(DecisionSettings(score="entropy", threshold="coverage", coverage=0.6), evaluation)
    assert half.coverage == pytest.approx(0.6)
    learned = choose_deployment(DecisionSettings(score={"kind": "learned", "queries": True}), evaluation)
    assert isinstance(learned.scorer, LearnedRisk)
    assert len(learned.scorer.slopes) == len(score_names())
    assert choose_deployment(DecisionSettings(), evaluation).score.kind in ("entropy", "learned")


def test_everything_is_chosen_over_all_conditions_together() -> None:
    """In one condition the posterior is half as sure as it should be, in the other the support loss misleads."""
    generator = np.random.default_rng(1)

    def condition(doubt: float, misrouted: float, error: float, support_loss: float, count: int = 400) -> Evaluation:
        doubts = np.clip(doubt + 0.02 * generator.standard_normal(count), 0, 0.9)
        hardness = np.clip(error + 0.02 * generator.standard_normal(count), 0, 1)
        losses = support_loss + 0.1 * generator.standard_normal(count)
        noise = {name: generator.random(count) for name in score_names()}
        known = {"entropy": doubts, "least_confidence": doubts, "support_loss": losses}
        made = made_evaluation(hardness, generator, noise | known)
        wrong = generator.random(count) < misrouted
        weights = np.stack([1 - doubts, doubts], axis=1)
        top = weights.argmax(1)
        return replace(made, weights=weights, route=np.where(wrong, 1 - top, top), source_of_route=(0, 1))

    def episodes() -> dict[str, Evaluation]:
        return {
            "clean": condition(0.03, 0.01, 0.03, 0.1),
            "confounded": condition(0.4, 0.5, 0.4, 0.0),
            "mislabelled": condition(0.06, 0.03, 0.15, 1.8),
        }

    found, new = choose_deployment(DecisionSettings(), episodes()), episodes()
    outcomes = {name: doubt_outcome(evaluation, found) for name, evaluation in new.items()}
    for name, outcome in outcomes.items():
        assert outcome.misrouting_is_calibrated, name
        assert outcome.stated_error == pytest.approx(1 - new[name].accuracy(RULE).mean(), abs=0.04), name
    assert outcomes["clean"].doubted < 0.1
    assert outcomes["confounded"].doubted > 0.95
    assert outcomes["mislabelled"].doubted > 0.7
    assert found.reliability is not None
    assert found.reliability.learned_from == ("clean", "confounded", "mislabelled")
    wide = choose_deployment(DecisionSettings(tolerance=0.3), episodes())
    assert doubt_outcome(new["mislabelled"], wide).doubted < 0.1
    assert doubt_outcome(new["confounded"], wide).doubted > 0.8
    one = choose_deployment(DecisionSettings(), new["confounded"])  # known to be hard: nothing else to compare with
    assert one.reliability is not None
    assert one.reliability.tolerance > 0.3
    with pytest.raises(ValueError, match="no validation episodes"):
        choose_deployment(DecisionSettings(), {})


def test_settings_of_a_config() -> None:
    config = load_config(None, ["decision.score={kind='auto', queries=true}", "decision.rule={kind='top-k', k=3}"])
    assert config.decision.score.options["queries"]
    assert config.decision.rule.to_dict() == {"kind": "top_k", "k": 3}
    start = initial_deployment(config.decision)
    assert (start.rule, start.never_falls_back, start.never_abstains) == (config.decision.rule, True, True)
    with pytest.raises(ValueError, match=r"decision.score.*no uncertainty_score 'entropie'; did you mean 'entropy'"):
        load_config(None, ["decision.score=entropie"])
    with pytest.raises(ValueError, match="coverage"):
        load_config(None, ["decision.coverage=0"])
