"""Certificates of a run: which losses, which share of delta, which population; the guarantee by simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_evaluation import made_evaluation
from scipy.stats import beta
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.certificates import Certificate, cvar_upper_bound, mean_upper_bound, select_abstention_threshold
from pyro_smat.episodes.corruption import SupportCorruption
from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.scores import Auto, LearnedRisk
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation import certification, deployed_losses, held_out
from pyro_smat.inference.evaluation.certification import RunCertificates, certify_run
from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
from pyro_smat.inference.evaluation.held_out import population_of
from pyro_smat.inference.evaluation.label_sets import calibrate_label_sets
from pyro_smat.inference.runs.run import metrics_of
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
        corruption=SupportCorruption(label_noise=0.3, confounding=0.5),
        progress=False,
    )
    certificate = noisy.certificates[0]
    assert certificate.loss == "NLL up to 2 nats / 2"
    assert "pool 'ood'" in certificate.population
    assert "label noise 0.3 in 100% of the supports, 50% of the supports confounded" in certificate.population
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


# The guarantee


def made(count: int, seed: int) -> Any:
    """Error of an episode with hardness h is h on average; h is uniform on [0, .6]."""
    generator = np.random.default_rng(seed)
    hardness = 0.6 * generator.random(count)
    noise = {
        name: generator.random(count)
        for name in ("kl_to_prior", "variance", "argmax_entropy", "support_loss", "composed_support_loss")
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
        violated += found.deployment.threshold > -math.inf and risk_of(found.deployment.threshold) > 0.2
        coverage.append(found.deployment.coverage)
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
    assert found.deployment.scorer == chosen.score
    values = chosen.score.of_values({name: v[200:] for name, v in evaluation.scores.items()})
    by_hand = select_abstention_threshold(values, losses[200:], 0.25, 0.1, validation_scores=chosen.values, seed=3)
    assert found.deployment.threshold == by_hand.threshold
    assert found.deployment.coverage == (values <= by_hand.threshold).mean()
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
    assert hopeless.deployment.scorer == found.deployment.scorer
    assert (hopeless.deployment.threshold, hopeless.deployment.coverage, hopeless.deployment.certificate) == (
        -math.inf,
        0.0,
        None,
    )
    assert "no threshold" in str(hopeless)
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


# Label sets


def test_label_sets_of_accepted_tasks(classifier: RoutedClassifier, certified: RunCertificates) -> None:
    found = calibrate_label_sets(classifier, certified.evaluation, 0.8, "this pool")
    evaluation = certified.evaluation
    accepted = np.flatnonzero(evaluation.scores["support_loss"] <= 0.9)
    mass, misfits = [], []
    for i in accepted:
        rows = np.flatnonzero(evaluation.episode == i)
        misfits += [1 - evaluation.probabilities["posterior_predictive"][r, evaluation.labels[r]] for r in rows]
        mass += [1 / (len(rows) * (len(accepted) + 1))] * len(rows)
    order = np.argsort(misfits)
    expected = np.array(misfits)[order][np.flatnonzero(np.cumsum(np.array(mass)[order]) >= 0.8 - 1e-9)[0]]
    assert found.threshold == pytest.approx(expected, abs=1e-12)
    assert found.population == "accepted tasks among this pool"
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    open_rule, closed_rule = (Deployment(threshold=eta) for eta in (math.inf, -1.0))
    task = RoutedClassifier(classifier.router, open_rule).adapt(images, ["b", "a", "c"] * 3)
    sets = task.predict_sets(queries, 0.7)
    for row, inside in zip(task.predict_proba(queries).tolist(), sets, strict=True):
        assert inside == tuple(c for c, p in zip("abc", row, strict=True) if p >= 0.3)
    assert task.predict_sets(queries, math.inf) == [("a", "b", "c")] * 5
    shut = RoutedClassifier(classifier.router, closed_rule).adapt(images, ["b", "a", "c"] * 3)
    assert shut.predict_sets(queries, 0.0) == [("a", "b", "c")] * 5
    with pytest.raises(ValueError, match="abstains on every episode"):
        calibrate_label_sets(RoutedClassifier(classifier.router, closed_rule), evaluation)
    with pytest.raises(ValueError, match="query images"):
        shut.predict_sets(torch.rand(5), 0.5)
