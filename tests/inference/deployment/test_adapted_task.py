"""AdaptedTask: what a task says of itself is what evaluation measures; nothing is computed twice or for nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.certificates import Certificate
from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.routed_batch import RoutedBatch
from pyro_smat.inference.decision.scores import Disagreement, Entropy, LearnedRisk, Variance
from pyro_smat.inference.decision.scores.standard import score_names
from pyro_smat.inference.deployment.changing_sources import remove_source
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.inputs import InputWarning
from pyro_smat.inference.evaluation import evaluate

CERTIFICATE = Certificate(0.1, 0.07, 0.1, 200, "selective risk", "learn then test, betting", loss="error")


def classifier_with(deployment: Deployment, *overrides: str) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(overrides)), deployment)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


LABELS = ["b", "a", "c"] * 3


def test_a_score_of_the_queries_decides_batch_by_batch() -> None:
    rule = {"kind": "posterior_predictive", "num_samples": 16}
    plain = classifier_with(Deployment(rule=rule, score="predictive_entropy"), "guide.kind=catalog")
    task = plain.adapt(images(9, 0), LABELS)
    batches = [images(5, seed) for seed in (1, 2)]
    entropies = []
    for batch in batches:
        p = task.predict_proba(batch, "posterior_predictive").numpy()
        entropies.append(-(p * np.log(p)).sum(1).mean())
        assert task.uncertainty_on(batch) == pytest.approx(entropies[-1], abs=1e-5)
    between = float(np.mean(entropies))
    task = RoutedClassifier(plain.router, plain.deployment.but(threshold=between)).adapt(images(9, 0), LABELS)
    assert math.isnan(task.uncertainty)
    assert not task.falls_back
    for batch, entropy in zip(batches, entropies, strict=True):
        expected = "fallback" if entropy > between else "posterior_predictive"
        assert task.falls_back_on(batch) == task.abstains_on(batch) == (entropy > between)
        assert torch.equal(task.predict_proba(batch), task.predict_proba(batch, expected))
    assert "every batch of queries" in str(task.explain())
    with pytest.raises(ValueError, match="'predictive_entropy' looks at queries; expected the images"):
        task.uncertainty_on(None)
    with pytest.warns(InputWarning, match=r"images are 4 x 4 pixels"):
        task.predict_proba(torch.rand(2, 1, 4, 4))


PREDICTOR = LearnedRisk(
    scores=(Entropy(), Disagreement()), centre=(0.5, 0.1), scale=(0.2, 0.05), slopes=(0.3, 0.4), intercept=1.0
)


def test_scores_of_a_task_are_those_of_evaluation() -> None:
    config = tiny_config(["guide.kind=catalog"])
    router, pool = tiny_router(config), tiny_pool()
    start = Deployment(rule={"kind": "posterior_predictive", "num_samples": 16}, score=PREDICTOR)
    sampler, features = config.episodes.sampler(pool, seed=3), router.features(pool)
    found = evaluate(router.model, router.guide, sampler, features, episodes=3, deployment=start)
    batch = config.episodes.sampler(pool, seed=3).sample(3)
    for i in range(3):
        asked, shots = batch.query.mask[i], batch.support.mask[i]
        for score in (*(n for n in score_names() if n not in ("variance", "argmax_entropy")), PREDICTOR):
            classifier = RoutedClassifier(router, start.but(score=score))
            task = classifier.adapt(batch.support.images[i][shots], batch.support.labels[i][shots])
            value = task.uncertainty_on(batch.query.images[i][asked])
            name = score if isinstance(score, str) else "learned"
            assert value == pytest.approx(found.scores[name][i], abs=1e-3 if name == "learned" else 2e-5), name


def test_nothing_is_scored_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that never abstains predicts without its score, and one that does computes it once."""
    asked: list[str] = []

    def counted(self: Variance, routed: RoutedBatch) -> torch.Tensor:
        asked.append(self.name)
        return torch.ones(1)

    monkeypatch.setattr(Variance, "__call__", counted)
    task = classifier_with(Deployment(score="variance")).adapt(images(9, 0), LABELS)
    task.predict_proba(images(2, 1))
    assert not asked
    task = classifier_with(Deployment(score="variance", threshold=2.0)).adapt(images(9, 0), LABELS)
    task.predict_proba(images(2, 1))
    task.predict_proba(images(2, 2))
    assert str(task.explain()).count("routes") == 1
    assert asked == ["variance"]


def test_equal_draws_are_one_network() -> None:
    rule = {"kind": "posterior_predictive", "num_samples": 40}
    overrides = (
        *(
            "guide.kind=catalog",
            "guide.catalog={kind='k_hot', max_sources=3}",
            "experts.count=40",
        ),  # 280 routings: no exact sum
        "guide.estimator=score_function",
    )
    router = tiny_router(tiny_config(overrides))
    task = RoutedClassifier(router, Deployment(rule=rule)).adapt(images(9, 0), LABELS)
    drawn = task.posterior.sample(40, torch.Generator().manual_seed(0))[:, 0]
    different = len({tuple(row.tolist()) for row in drawn})
    assert task.explain().networks == different < 40
    batch = EpisodeBatch.collate([Episode(Labelled(images(9, 0), torch.tensor([1, 0, 2] * 3)), Labelled(images(3, 1)))])
    by_draw = sum(router.model.logits(row[None, None], batch, router.model.basis()).softmax(-1) for row in drawn) / 40
    torch.testing.assert_close(task.predict_proba(images(3, 1)), by_draw[0, 0].detach(), rtol=1e-4, atol=1e-6)


def test_a_task_says_its_warrant_but_not_where_it_is_none() -> None:
    calibration = MisroutingProbability(1.5, 0.5, 99)
    deployment = Deployment(threshold=10.0, coverage=0.9, misrouting=calibration, certificate=CERTIFICATE)
    classifier = classifier_with(deployment)
    task = classifier.adapt(images(9, 0), LABELS)
    text = str(task.explain())
    assert str(CERTIFICATE) in text
    doubt = 1 - float(task.posterior.source_weights.max())
    odds = np.exp(1.5 * np.log(doubt / (1 - doubt)) + 0.5)
    assert task.misrouting == pytest.approx(odds / (1 + odds), abs=1e-5)
    assert f"probability of misrouting {100 * task.misrouting:.0f}%" in text
    assert "calibrated on 99 validation episodes" in text
    refined = str(classifier.adapt(images(9, 0), LABELS, refine="frank-wolfe:steps=2").explain())
    assert "selective risk" not in refined  # other predictions than those that were certified
    assert remove_source(classifier, "c").deployment == deployment.but(certificate=None, misrouting=None)
