"""answer_many: tasks that were routed together answer as each does alone, whatever guide, rule and score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.episodes import Labelled
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.misrouting import MisroutingProbability
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.decision.scores import Disagreement, LearnedRisk, SupportLoss, Variance
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.network_features import NetworkFeatures
from pyro_smat.registry import names

BLOCKS = 'sources.blocks={weight=".*weight", bias=".*bias"}'
FAMILIES = [
    *([f"guide={{kind='{name}'}}", f"experts.count={0 if name == 'pseudo_bma' else 2}"] for name in names("guide")),
    ["guide.kind=logistic_normal", "guide.covariance=low_rank"],
    ["guide.kind=logistic_normal", "guide.covariance=full"],
    ["guide.kind=concrete", "guide.straight_through=true"],
    ["guide.kind=catalog", BLOCKS],
    ["guide.kind=logistic_normal", BLOCKS],
    ["guide.kind=catalog", "model.classifier=mixture", "model.label_noise=0.1", "model.transduction=0.3"],
]
CALIBRATION = MisroutingProbability(1.5, 0.5, 99)
RISK = LearnedRisk(
    scores=(SupportLoss(), Variance()), centre=(1.0, 0.1), scale=(0.5, 0.1), slopes=(0.1, 0.05), intercept=0.5
)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def supports(count: int = 9) -> list[tuple[torch.Tensor, list[Any]]]:
    """Of three shapes, mixed: two ways and two numbers of shots, unbalanced, with labels of several kinds."""
    shapes: list[list[Any]] = [["b", "a", "c"] * 3, [7, 3, 7, 3], [True, False, True, True], ["x", "y", "z", "x"]]
    return [(images(len(labels), i), labels) for i, labels in enumerate(shapes[i % 4] for i in range(count))]


def queries(count: int = 9) -> list[torch.Tensor | None]:
    """Of several numbers, and none."""
    return [None if i == 5 else images(1 + i % 3, 100 + i) for i in range(count)]


def check(classifier: RoutedClassifier, at_once: int = 32) -> None:
    tasks = list(classifier.adapt_many(supports(), seed=3, at_once=at_once))
    answers = classifier.answer_many(tasks, queries())
    decides = not any(score.looks_at_queries for score in classifier.deployment.reads)
    for (pixels, labels), asked, task, answer in zip(supports(), queries(), tasks, answers, strict=True):
        alone = classifier.adapt(pixels, labels, seed=3)
        assert answer.classes == task.classes == alone.classes
        assert [type(one) for one in answer.classes] == [type(one) for one in alone.classes]
        close(answer.weights, alone.posterior.source_weights[0].float())
        close(task.posterior.mean, alone.posterior.mean)
        assert answer.misrouting == pytest.approx(alone.misrouting, abs=1e-5)
        if asked is not None:
            close(answer.probabilities, alone.predict_proba(asked))
            close(task.predict_proba(asked), alone.predict_proba(asked))
            assert answer.predictions == alone.predict(asked)
        else:
            assert answer.probabilities.shape == (0, len(alone.classes))
        if asked is not None or decides:
            if classifier.deployment.never_falls_back:
                assert answer.uncertainty is None
            else:
                assert answer.uncertainty == pytest.approx(alone.uncertainty_on(asked), abs=1e-4)
            assert answer.risk == pytest.approx(alone.risk_on(asked), abs=1e-4)
            assert (answer.falls_back, answer.reliable) == (alone.falls_back_on(asked), alone.reliable_on(asked))
        else:
            assert (answer.uncertainty, answer.risk, answer.falls_back, answer.reliable) == (None,) * 4


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def deployment(classifier: RoutedClassifier, score: Any, **more: Any) -> Deployment:
    """With a threshold in the middle, so that some of the tasks of a shape fall back."""
    plain = RoutedClassifier(classifier.router, classifier.deployment.but(score=score))
    pairs = [(s, q) for s, q in zip(supports(), queries(), strict=True) if q is not None]
    values = [plain.adapt(*support, seed=3).uncertainty_on(asked) for support, asked in pairs]
    return classifier.deployment.but(score=score, threshold=float(np.mean(values)), **more)


@pytest.mark.parametrize("overrides", FAMILIES, ids=" ".join)
def test_every_guide(overrides: list[str]) -> None:
    reliability = Reliability(risk=RISK, tolerance=0.5)
    start = Deployment(misrouting=CALIBRATION, reliability=reliability, fallback="b")
    classifier = RoutedClassifier(tiny_router(tiny_config(overrides)), start, cache_size=0)
    check(classifier)
    moved = deployment(classifier, "support_loss")
    check(RoutedClassifier(classifier.router, moved, cache_size=0), at_once=4)


@pytest.mark.parametrize("guide", ["catalog", "logistic_normal"])
@pytest.mark.parametrize("score", ["variance", "kl_to_prior", "disagreement", Disagreement(5), "composed_support_loss"])
def test_scores_that_draw_or_look_at_queries(guide: str, score: Any) -> None:
    overrides = [f"guide.kind={guide}"]
    if guide == "logistic_normal" and score == "kl_to_prior":  # without a closed form
        overrides.append("prior={kind='dirichlet'}")
    start = Deployment(reliability=Reliability(risk=score, tolerance=0.0), misrouting=CALIBRATION)
    plain = RoutedClassifier(tiny_router(tiny_config(overrides)), start, cache_size=0)
    check(RoutedClassifier(plain.router, deployment(plain, score), cache_size=0))


@pytest.mark.parametrize("rule", [*names("decision_rule"), {"kind": "posterior_predictive", "num_samples": 3}])
def test_every_rule(rule: Any) -> None:
    for overrides in (["guide.kind=catalog"], ["guide.kind=dirichlet"]):
        start = Deployment(rule=rule, gate_samples=2, misrouting=CALIBRATION, reliability=Reliability(risk="entropy"))
        check(RoutedClassifier(tiny_router(tiny_config(overrides)), start, cache_size=0))


def test_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide runs once a shape, and a network once for all tasks of a shape that share it."""
    classifier = RoutedClassifier(tiny_router(tiny_config(["guide.kind=catalog", "experts.count=0"])), cache_size=0)
    guided: list[int] = []
    guide = type(classifier.router.guide)
    posterior = guide.posterior
    monkeypatch.setattr(guide, "posterior", lambda self, batch: guided.append(len(batch)) or posterior(self, batch))
    tasks = list(classifier.adapt_many(supports(12)))
    assert sorted(guided) == [3, 3, 6]
    runs: list[int] = []
    run = TaskNetwork.__call__
    monkeypatch.setattr(TaskNetwork, "__call__", lambda self, theta, x: runs.append(len(x)) or run(self, theta, x))
    classifier.answer_many(tasks, [images(2, i) for i in range(12)])
    assert len(runs) <= 3 * len(classifier.router.catalog or ())  # of the queries; the supports are known of sources


@pytest.mark.parametrize("gates", [0, 2])
def test_batches_of_a_pool_under_shared_networks(gates: int) -> None:
    """Padded supports, and rows in place of forwards."""
    start = Deployment(gate_samples=gates, misrouting=CALIBRATION)
    classifier = RoutedClassifier(tiny_router(tiny_config(["guide.kind=catalog"])), start, cache_size=0)
    pool, router = tiny_pool(), classifier.router
    batch = router.config.episodes.sampler(pool, seed=3).sample(6)
    assert len({tuple(row) for row in batch.support.mask.tolist()}) > 1
    known = {"features": router.features(pool), "shared": NetworkFeatures(router.model.network, pool)}
    tasks = list(classifier.adapt_many([batch], **known, at_once=4))
    episodes = [batch.episode(i) for i in range(6)]
    answers = classifier.answer_many(tasks, [Labelled(e.query.images, rows=e.query.rows) for e in episodes])
    for episode, answer, task in zip(episodes, answers, tasks, strict=True):
        alone = classifier.adapt(episode.support.images, episode.support.labels)
        close(answer.probabilities, alone.predict_proba(episode.query.images))
        assert task.classes == episode.class_names


def test_what_is_refused() -> None:
    classifier = RoutedClassifier(tiny_router(tiny_config(["guide.kind=catalog"])), cache_size=0)
    tasks = list(classifier.adapt_many(supports(2)))
    with pytest.raises(ValueError, match="got 2 tasks and queries of 1; expected one set for each task"):
        classifier.answer_many(tasks, queries(1))
    with pytest.raises(ValueError, match="NaN"):
        classifier.answer_many(tasks, [images(1, 0), torch.full((1, 1, 8, 8), torch.nan)])
    refined = classifier.adapt(*supports(1)[0], refine="frank_wolfe:steps=1")
    for asked in ([refined], [refined, refined]):  # the very same task twice, as the cache gives it
        for answer in classifier.answer_many(asked, [images(2, 1)] * len(asked)):
            close(answer.probabilities, refined.predict_proba(images(2, 1)))
    assert classifier.answer_many([], []) == []
