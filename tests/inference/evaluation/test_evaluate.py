"""evaluate(): what is run, under which names, and that a user's own rule, score and baseline reach the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.decision import Deployment, Mixture
from pyro_smat.inference.decision.routed_batch import RoutedBatch
from pyro_smat.inference.decision.rules import DecisionRule
from pyro_smat.inference.decision.scores import UncertaintyScore, Variance
from pyro_smat.inference.decision.scores.standard import score_names
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings, evaluate
from pyro_smat.inference.evaluation.baselines import BEST_BY_SUPPORT, ORACLE, Baseline, RouterBaseline
from pyro_smat.inference.runs.evaluate import metrics_of
from pyro_smat.report.page import render_report
from pyro_smat.report.summary import build_report


def run(classifier: RoutedClassifier, **options: Any) -> Evaluation:
    router, pool = classifier.router, tiny_pool()
    return evaluate(
        router.model,
        router.guide,
        router.config.episodes.sampler(pool, seed=3),
        router.features(pool),
        **{"episodes": 5, "batch_size": 3, "deployment": classifier.deployment} | options,
    )


@pytest.fixture
def classifier() -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config()))


def test_the_methods_of_every_report(classifier: RoutedClassifier) -> None:
    found = run(classifier, source_of_route=(0, 1))
    shown = {name: found.method(name).role for name in found.methods}
    assert [n for n, role in shown.items() if role == "rule"] == [
        "mean",
        "map",
        "gibbs",
        "posterior_predictive",
        "top_k",
        "uniform_mixing",
    ]
    assert [n for n, role in shown.items() if role == "baseline"] == [
        "fallback",
        "average of all sources",
        "average of all sources, weighted by support loss",
        BEST_BY_SUPPORT,
    ]
    assert [n for n, role in shown.items() if role == "reference"] == [ORACLE]
    assert [n for n, role in shown.items() if role == "detail"] == ["source: a", "source: b", "source: c"]
    assert found.method("fallback").title == "a (source 0)"
    assert tuple(found.scores) == score_names()
    assert ORACLE not in run(classifier).methods  # nobody knows the routes
    again = run(classifier, source_of_route=(0, 1))
    assert all((again.probabilities[m] == p).all() for m, p in found.probabilities.items())


def test_the_deployed_rule_has_its_options_and_the_rest_is_left_out(classifier: RoutedClassifier) -> None:
    deployment = Deployment(rule={"kind": "top_k", "k": 1}, score="variance", fallback="b")
    bare = run(classifier, deployment=deployment, settings=EvaluationSettings.bare())
    assert bare.methods == ("top_k", "fallback")
    assert tuple(bare.scores) == ("variance",)
    assert bare.method("fallback").title == "fallback (b)"
    full = run(classifier, deployment=deployment)
    assert abs(full.probabilities["top_k"] - bare.probabilities["top_k"]).max() < 1e-6
    assert abs(full.probabilities["fallback"] - bare.probabilities["fallback"]).max() < 1e-6
    pairs = EvaluationSettings.bare([Variance(num_samples=4)])
    assert tuple(run(classifier, settings=pairs).scores) == ("variance", "entropy")


@dataclass(frozen=True)
class Halves(DecisionRule):
    """Two routings in equal parts."""

    def __call__(self, posterior: Any, batch: Any = None, *, generator: torch.Generator | None = None) -> Mixture:
        return Mixture.equal(torch.stack([posterior.mean, posterior.mode]))


@dataclass(frozen=True)
class Shots(UncertaintyScore):
    """Few shots are little to go by."""

    label: ClassVar[str] = "few shots"

    def __call__(self, routed: RoutedBatch) -> Tensor:
        return 1.0 / routed.batch.support.mask.sum(-1)


class Guess(Baseline):
    """All classes alike."""

    name = "blind guess"

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        alike = batch.class_mask / batch.way.unsqueeze(-1)
        return alike.unsqueeze(1).expand(-1, len(batch.query), -1)


def test_things_of_ones_own_reach_metrics_and_report(classifier: RoutedClassifier) -> None:
    own = RoutedClassifier(classifier.router, Deployment(rule=Halves(), score=Shots(), threshold=0.1))
    other = RouterBaseline(classifier, "point routing")
    found = run(own, baselines=[Guess(), other])
    for i, b in enumerate(found.episode):
        assert found.probabilities["blind guess"][i].max() == pytest.approx(1 / found.way[b])
    assert found.scores["Shots"] == pytest.approx(1 / found.shots)
    metrics = metrics_of(own, found)
    assert metrics["rule"] == {"kind": "test_evaluate.py:Halves"}
    assert metrics["abstention"]["coverage"] == pytest.approx(float((1 / found.shots <= 0.1).mean()))
    page = render_report(build_report(own, {"here": found}, title="t", subtitle="s", command="c"))
    for row in ("routed, Halves", "blind guess", "point routing", "few shots", "average of all sources"):
        assert row in page, row
    assert "source: a" not in page
