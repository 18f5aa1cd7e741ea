"""The guarantee of a tolerance: by simulation, and which half says what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_evaluation import made_evaluation
from scipy.stats import beta
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.certificates import select_abstention_threshold
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.scores import Auto
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import held_out
from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
from pyro_smat.inference.evaluation.held_out import population_of


def classifier_with(deployment: Deployment, *overrides: str) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(overrides)), deployment)


@pytest.fixture(scope="module")
def classifier() -> RoutedClassifier:
    return classifier_with(Deployment(score="support_loss"))


def made(count: int, seed: int) -> Any:
    """Error of an episode with hardness h is h on average; h is uniform on [0, .6]."""
    generator = np.random.default_rng(seed)
    hardness = 0.6 * generator.random(count)
    noise = {
        name: generator.random(count)
        for name in (
            "kl_to_prior",
            "variance",
            "argmax_entropy",
            "support_error",
            "support_loss",
            "composed_support_loss",
        )
    }
    return made_evaluation(hardness, generator, noise)


def risk_of(threshold: float) -> float:
    """E[h | h + .05 g <= threshold], by a large sample."""
    return float(_HARD[threshold >= _SCORES].mean())


_RNG = np.random.default_rng(99)
_HARD = 0.6 * _RNG.random(400_000)
_SCORES = _HARD + 0.05 * _RNG.standard_normal(400_000)


def test_the_guarantee_holds(classifier: RoutedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, delta, violated, coverage = 60, 0.1, 0, []
    for seed in range(runs):
        monkeypatch.setattr(held_out, "evaluate_router", lambda *a, seed, episodes, **k: made(episodes, seed))
        found = abstain_with_guarantee(
            classifier, tiny_pool(), split="test", risk=0.2, delta=delta, score="entropy", episodes=800, seed=seed
        )
        reliability = found.deployment.reliability
        assert reliability is not None
        violated += reliability.tolerance > -math.inf and risk_of(reliability.tolerance) > 0.2
        coverage.append(reliability.coverage)
    assert violated <= beta.ppf(0.999, runs * delta + 1, runs * (1 - delta)) * runs
    assert np.mean(coverage) > 0.4  # the oracle accepts .66


def test_the_score_is_chosen_on_one_half_and_certified_on_the_other(
    classifier: RoutedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = made(400, 0)
    monkeypatch.setattr(held_out, "evaluate_router", lambda *a, **k: evaluation)
    ask: dict[str, Any] = {"split": "test", "risk": 0.25, "delta": 0.1, "episodes": 400, "seed": 3}
    found = abstain_with_guarantee(classifier, tiny_pool(), **ask)
    losses = 1 - evaluation.accuracy("posterior_predictive")
    first = {name: values[:200] for name, values in evaluation.scores.items()}
    chosen = Auto().fit(first, losses[:200])
    reliability = found.deployment.reliability
    assert reliability is not None
    assert reliability.predictor == chosen.score
    assert found.deployment.but(reliability=None, certificate=None) == classifier.deployment  # what falls back stays
    values = chosen.score.of_values({name: v[200:] for name, v in evaluation.scores.items()})
    by_hand = select_abstention_threshold(values, losses[200:], 0.25, 0.1, validation_scores=chosen.values, seed=3)
    assert reliability.tolerance == by_hand.threshold
    assert reliability.coverage == (values <= by_hand.threshold).mean()
    warrant = found.deployment.certificate
    assert warrant is not None
    assert (warrant.bound, warrant.delta, warrant.quantity, warrant.loss) == (0.25, 0.1, "selective risk", "error")
    assert warrant.population == population_of(classifier, tiny_pool(), "test")
    assert "the score was chosen on other episodes" in str(found)
    # Losses of the certifying half have no say in the choice of the score and of the grid.
    swapped = evaluation.labels.copy()
    later = evaluation.episode >= 200
    swapped[later] = (swapped[later] + 1) % 3
    monkeypatch.setattr(held_out, "evaluate_router", lambda *a, **k: replace(evaluation, labels=swapped))
    hopeless = abstain_with_guarantee(classifier, tiny_pool(), **ask)
    none = hopeless.deployment.reliability
    assert none is not None
    assert none.predictor == reliability.predictor
    assert (none.tolerance, none.coverage, hopeless.deployment.certificate) == (-math.inf, 0.0, None)
    assert "no tolerance" in str(hopeless)
    with pytest.raises(ValueError, match="episodes is 3"):
        abstain_with_guarantee(classifier, tiny_pool(), split="test", episodes=3)


def test_a_rule_with_a_guarantee_end_to_end(classifier: RoutedClassifier) -> None:
    found = abstain_with_guarantee(
        classifier, tiny_pool(), split="test", risk=0.8, delta=0.2, episodes=200, progress=False
    )
    guarded = RoutedClassifier(classifier.router, found.deployment)
    task = guarded.adapt(torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), ["a", "b"] * 3)
    assert found.deployment.certificate is not None
    assert str(found.deployment.certificate) in str(task.explain())
