"""Certificates of a run: which losses, which share of delta, which population."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.certificates import Certificate, cvar_upper_bound, mean_upper_bound
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.scores import LearnedRisk
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import certification, deployed_losses
from pyro_smat.inference.evaluation.certification import RunCertificates, certify_run
from pyro_smat.inference.runs.evaluate import metrics_of
from pyro_smat.report.page import render_report
from pyro_smat.report.summary import build_report


def classifier_with(deployment: Deployment, *overrides: str) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(overrides)), deployment)


@pytest.fixture(scope="module")
def classifier() -> RoutedClassifier:
    return classifier_with(Deployment(score="support_loss", threshold=0.9, coverage=0.5))


@pytest.fixture(scope="module")
def certified(classifier: RoutedClassifier) -> RunCertificates:
    return certify_run(classifier, tiny_pool(), split="test", rho=0.2, delta=0.1, episodes=80, progress=False)


def test_the_bounds_are_of_what_is_deployed(classifier: RoutedClassifier, certified: RunCertificates) -> None:
    evaluation = certified.evaluation
    abstained = evaluation.scores["support_loss"] > 0.9
    assert 0 < abstained.sum() < 80
    routed, fallback = (1 - evaluation.accuracy(m) for m in ("posterior_predictive", "fallback"))
    losses = [b if a else r for a, r, b in zip(abstained, routed, fallback, strict=True)]
    seed = certification.CERTIFICATE_SEED
    mean, tail = certified.certificates
    assert mean.bound == mean_upper_bound(losses, 0.05, seed=seed).bound
    assert tail.bound == cvar_upper_bound(losses, 0.2, 0.05, seed=seed).bound
    assert (mean.delta, tail.delta, certified.delta) == (0.05, 0.05, 0.1)  # Bonferroni
    assert (mean.rho, tail.rho) == (None, 0.2)
    for certificate in certified.certificates:
        assert certificate.count == 80
        assert certificate.loss == "error"
        assert "540 images of 12 classes of pool 'test'" in certificate.population
        assert "way 2 to 4, shot 2 to 3, query 2; clean supports" in certificate.population
    again = certify_run(classifier, tiny_pool(), split="test", rho=0.2, delta=0.1, episodes=80, progress=False)
    assert again.certificates == certified.certificates


def test_other_losses_corruptions_and_seeds(classifier: RoutedClassifier, certified: RunCertificates) -> None:
    evaluation = certified.evaluation
    for loss, method in (("brier", "brier"), ("nll", "nll")):
        found = deployed_losses(evaluation, classifier.deployment, loss, 2.0)  # type: ignore[arg-type]
        abstained = evaluation.scores["support_loss"] > 0.9
        for part, name in ((~abstained, "posterior_predictive"), (abstained, "fallback")):
            expected = evaluation.bounded_loss(name, method, 2.0)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found[part], expected[part])
    noisy = certify_run(
        classifier,
        tiny_pool(),
        split="ood",
        loss="nll",
        episodes=20,
        seed=5,
        clip=2.0,
        corruptions=[{"kind": "confounding", "probability": 0.5}, {"kind": "label_noise", "fraction": 0.3}],
        progress=False,
    )
    certificate = noisy.certificates[0]
    assert certificate.loss == "NLL up to 2 nats / 2"
    assert "pool 'ood'" in certificate.population
    assert "confounding in 50% of the episodes, label noise 0.3" in certificate.population
    assert (noisy.evaluation.corrupted_labels > 0).any()
    with pytest.raises(ValueError, match="delta is 1"):
        certify_run(classifier, tiny_pool(), split="test", delta=1, progress=False)
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        certify_run(classifier, tiny_pool(), split="test", loss="hinge", episodes=4, progress=False)  # type: ignore[arg-type]


def test_the_table_says_what_the_bounds_are_and_are_not(certified: RunCertificates) -> None:
    mean, tail = certified.certificates
    useless = RunCertificates((mean, replace(tail, bound=0.97)), 0.1, certified.evaluation)
    lines = str(useless).splitlines()
    assert lines[1].split()[:5] == ["mean", "of", "error", f"{mean.bound:.4f}", f"{mean.estimate:.4f}"]
    assert lines[2].startswith("CVaR (worst 20%) of error")
    assert "uninformative" in lines[2]
    assert "0.97" not in lines[2]
    assert "All 2 hold at once with probability 90%: they share delta = 0.1 (Bonferroni)." in lines
    assert f"About {mean.population}." in lines
    assert "error is in [0, 1]." in lines
    data = json.loads(json.dumps(useless.to_dict(), allow_nan=False))
    assert [Certificate.from_dict(c) for c in data["certificates"]] == list(useless.certificates)


def test_the_report_has_a_section_for_them(classifier: RoutedClassifier, certified: RunCertificates) -> None:
    page: Callable[..., str] = lambda **more: render_report(  # noqa: E731
        build_report(classifier, {"test": certified.evaluation}, title="t", subtitle="s", command="c", **more)
    )
    with_section = page(certified=certified)
    mean = certified.certificates[0]
    for part in ("Certificates", f"{mean.bound:.3f}", "95%", "(Bonferroni)", "pool &#39;test&#39;", "uninformative"):
        assert part in with_section
    assert "<h3>Certificates" not in page()


def test_metrics_and_report_of_a_learned_and_certified_rule(
    classifier: RoutedClassifier, certified: RunCertificates
) -> None:
    evaluation = certified.evaluation
    chosen = LearnedRisk().fit(evaluation.scores, evaluation.loss("posterior_predictive"))
    warrant = Certificate(0.4, 0.3, 0.1, 50, "selective risk", "learn then test, betting", loss="error")
    threshold = float(np.median(chosen.values))
    deployment = Deployment(score=chosen.score, threshold=threshold, fallback="b", certificate=warrant)
    learned = RoutedClassifier(classifier.router, deployment)
    metrics = metrics_of(learned, evaluation)
    assert metrics["aurc"]["learned"] > 0
    assert metrics["abstention"]["certificate"]["bound"] == 0.4
    assert metrics["abstention"]["fallback"] == "b"
    page = render_report(build_report(learned, {"test": evaluation}, title="t", subtitle="s", command="c"))
    assert "selective risk of error &lt;= 0.4000" in page
    assert "the loss predicted from least confidence, entropy" in page
