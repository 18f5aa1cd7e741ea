"""Abstention: scores by other routes, learned risk by least squares, thresholds by brute force, the rule on a task."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_evaluation import made_evaluation
from scipy.stats import ttest_rel
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.certificates import Certificate
from pyro_smat.inference.decision.abstention import (
    AbstentionRule,
    choose_abstention,
    choose_score,
    coverage_threshold,
    least_loss_threshold,
)
from pyro_smat.inference.decision.fallback import fallback_coefficients
from pyro_smat.inference.decision.isotonic import IsotonicCalibration
from pyro_smat.inference.decision.risk_predictor import RiskPredictor, cross_fitted_risk
from pyro_smat.inference.decision.scores import QUERY_SCORES, SCORES, SUPPORT_SCORES, query_scores, support_scores
from pyro_smat.inference.deployment.changing_sources import remove_source
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.evaluation import Evaluation, evaluate
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.inference.assembly.router import build_sampler
from pyro_smat.inference.assembly.config import Decision, load_config
from pyro_smat.metrics.selective import aurc
from pyro_smat.models.priors import RoutingPrior

CERTIFICATE = Certificate(0.1, 0.07, 0.1, 200, "selective risk", "learn then test, betting", loss="error")
PREDICTOR = RiskPredictor(("entropy", "disagreement"), (0.5, 0.1), (0.2, 0.05), (0.3, 0.4), 1.0)


def risk_data(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    first, second = generator.standard_normal((2, count))
    losses = 1 + 0.5 * first - 0.3 * second + 0.4 * generator.standard_normal(count)
    return {"a": 10 * first + 3, "b": second, "constant": np.full(count, 2.5)}, losses


# Scores


@pytest.mark.parametrize("overrides", [(), ("guide.family=catalog",), ("experts.count=0",)])
def test_support_scores_by_other_routes(overrides: tuple[str, ...]) -> None:
    config = tiny_config(overrides)
    router = tiny_router(config)
    router.model.eval()
    router.guide.eval()
    pool = tiny_pool()
    batch = router.features(pool).attach(build_sampler(config, pool, 3).sample(4))
    posterior, basis = router.guide.posterior(batch), router.model.basis().detach()
    found = support_scores(router.model, posterior, batch, basis, torch.Generator().manual_seed(5))
    assert tuple(found) == SUPPORT_SCORES
    assert all(values.shape == (4,) and torch.isfinite(values).all() for values in found.values())
    one_by_one = [
        support_candidate_losses(router.model, batch[i : i + 1], posterior.mean[i : i + 1], basis=basis)[0, 0]
        for i in range(4)
    ]
    torch.testing.assert_close(found["composed support loss"], torch.stack(one_by_one), rtol=1e-4, atol=1e-5)
    kinds = posterior.uncertainty("argmax entropy", generator=torch.Generator().manual_seed(1))
    drawn = posterior.sample(64, torch.Generator().manual_seed(1))
    for i in range(4):
        cells = [(int(c[:3].argmax()), int(c[3:].argmax()) if len(c) > 3 else 0) for c in drawn[:, i]]
        shares = np.array(list(Counter(cells).values())) / 64
        assert kinds[i].item() == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-5)
    # Monte Carlo inside does not disturb the global generator.
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    support_scores(router.model, posterior, batch, basis, torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(1), before)


def test_the_composed_support_loss_averages_over_samples_of_the_gates() -> None:
    config = tiny_config()
    router = tiny_router(config)
    router.model.eval()
    batch = router.features(tiny_pool()).attach(build_sampler(config, tiny_pool(), 3).sample(2))
    posterior, bases = router.guide.posterior(batch), router.model.basis(3, torch.Generator().manual_seed(0)).detach()

    def loss(basis: torch.Tensor) -> torch.Tensor:
        return support_scores(router.model, posterior, batch, basis, torch.Generator())["composed support loss"]

    torch.testing.assert_close(loss(bases), torch.stack([loss(rows) for rows in bases]).mean(0))


def test_query_scores_query_by_query() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64).softmax(-1)
    weights = torch.rand(3, 2, generator=generator, dtype=torch.float64).softmax(0)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    found = query_scores(probabilities, weights, mask)
    assert tuple(found) == QUERY_SCORES
    for b in range(2):
        entropies, gaps = [], []
        for q in range(4):
            if not mask[b, q]:
                continue
            mixture = sum(float(weights[k, b]) * probabilities[k, b, q].numpy() for k in range(3))
            entropies.append(-(mixture * np.log(mixture)).sum())
            gaps.append(
                sum(
                    float(weights[k, b]) * (p * np.log(p / mixture)).sum()
                    for k in range(3)
                    for p in [probabilities[k, b, q].numpy()]
                )
            )
        assert found["predictive entropy"][b].item() == pytest.approx(np.mean(entropies))
        assert found["disagreement"][b].item() == pytest.approx(np.mean(gaps))


# The learned risk


@pytest.mark.parametrize("penalty", [0.5, 10.0])
def test_the_risk_predictor_is_ridge_regression(penalty: float) -> None:
    scores, losses = risk_data(80)
    found = RiskPredictor.fit(scores, losses, penalty)
    z = np.stack([(scores[k] - scores[k].mean()) / scores[k].std() for k in ("a", "b")], 1)
    assert np.abs(z).max() < 4  # nothing is clipped
    reference = Ridge(alpha=penalty).fit(z, losses)
    assert found.names == ("a", "b", "constant")
    np.testing.assert_allclose(found.slopes, [*reference.coef_, 0.0], atol=1e-10)
    np.testing.assert_allclose(found.predict(scores), reference.predict(z), rtol=1e-10)
    assert RiskPredictor.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    far = found.predict({"a": [math.inf], "b": [0.0], "constant": [2.5]})
    at = found.predict({"a": [found.centre[0] + 4 * found.scale[0]], "b": [0.0], "constant": [2.5]})
    assert far[0] == pytest.approx(at[0])


def test_cross_fitting_predicts_episodes_that_were_not_fitted() -> None:
    scores, losses = risk_data(53)
    found = cross_fitted_risk(scores, losses)
    changed = losses.copy()
    changed[7] += 100.0
    again = cross_fitted_risk(scores, changed)
    fold = np.arange(53) % 5 == 7 % 5
    np.testing.assert_array_equal(found[fold], again[fold])  # neither the episode nor its fold has seen it
    assert (found[~fold] != again[~fold]).all()
    # Nothing to learn: in its own episodes a predictor always finds something, in others it does not.
    gaps = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        noise, y = {f"{k}": generator.standard_normal(60) for k in range(9)}, generator.random(60)
        own = aurc(RiskPredictor.fit(noise, y).predict(noise), y)
        gaps.append((own - y.mean(), aurc(cross_fitted_risk(noise, y), y) - y.mean()))
    own_gap, honest_gap = np.mean(gaps, 0)
    assert own_gap < -0.05
    assert abs(honest_gap) < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_calibration_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    u = np.round(generator.random(60), 1 + seed % 2)  # with ties
    y = generator.random(60) < u**2
    found = IsotonicCalibration.fit(u, y)
    reference = IsotonicRegression(out_of_bounds="clip").fit(u, y.astype(float))
    grid = np.linspace(-0.5, 1.5, 101)
    np.testing.assert_allclose(found.probability(grid), reference.predict(grid), atol=1e-12)
    assert found.probability([-math.inf, math.inf]).tolist() == [found.probabilities[0], found.probabilities[-1]]
    assert IsotonicCalibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Choosing


def all_scores(count: int, seed: int, **known: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random(count) for name in SCORES} | known


def test_the_score_with_the_lowest_aurc_is_chosen() -> None:
    losses = np.random.default_rng(0).random(200)
    noisy = losses + 0.1 * np.random.default_rng(1).standard_normal(200)
    scores = all_scores(200, 2, variance=np.exp(20 * noisy), disagreement=losses**3)
    support = choose_score(scores, losses)
    assert (support.name, support.predictor) == ("variance", None)  # better than a linear one: its exponential fools it
    assert set(support.aurc) == {*SUPPORT_SCORES, "learned"}
    assert support.aurc["variance"] == min(support.aurc.values()) == pytest.approx(aurc(scores["variance"], losses))
    assert choose_score(scores, losses, "auto with queries").name == "disagreement"
    assert choose_score(scores, losses, "entropy").name == "entropy"


def test_a_learned_score_wins_where_two_scores_know_half_each() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.standard_normal((2, 300))
    losses = first + second + 0.1 * generator.standard_normal(300)
    scores = all_scores(300, 1, variance=first) | {"support loss": second}
    chosen = choose_score(scores, losses)
    assert chosen.name == "learned"
    assert chosen.predictor is not None
    assert chosen.predictor.names == SUPPORT_SCORES
    rule = chosen.rule(math.inf)
    assert not rule.looks_at_queries
    assert np.corrcoef(rule.uncertainty(scores), losses)[0, 1] > 0.98
    with_queries = choose_score(scores, losses, "learned with queries")
    assert with_queries.rule(0.0).looks_at_queries
    unreadable = choose_score(scores | {"entropy": np.full(300, np.inf)}, losses, "learned")
    assert unreadable.predictor is not None
    assert "entropy" not in unreadable.predictor.names


unsure = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(unsure, st.sampled_from([0.2, 0.5, 1.0]))
def test_thresholds_by_brute_force(rows: list[tuple[int, int, int]], coverage: float) -> None:
    u, ours, theirs = np.array(rows, dtype=float).T
    smallest = min(t for t in u if (u <= t).mean() >= coverage - 1e-12)
    assert coverage_threshold(u, coverage) == smallest

    def whole(threshold: float) -> float:
        return sum(a if v <= threshold else b for v, a, b in zip(u, ours, theirs, strict=True)) / len(u)

    found = least_loss_threshold(u, ours, theirs, coverage)
    allowed = [t for t in (*u, math.inf) if (u <= t).mean() >= coverage - 1e-12]
    assert whole(found) == pytest.approx(min(whole(t) for t in allowed))
    assert (u <= found).mean() >= coverage - 1e-12
    if min(whole(t) for t in allowed) == whole(math.inf):
        assert found == math.inf  # where abstaining saves nothing, it does not happen


def test_the_rule_is_chosen_as_the_config_says() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.random(300)
    evaluation = made_evaluation(hardness, generator, all_scores(300, 1) | {"entropy": hardness})
    route = np.arange(300) % 2
    evaluation = replace(evaluation, route=route, source_of_route=(0, 1))
    rule = choose_abstention(Decision(score="entropy", fallback="prior mean"), evaluation)
    outcome = evaluation.with_abstention("ensemble", rule)
    assert rule.score == "entropy"
    assert rule.fallback == "prior mean"
    assert rule.threshold == least_loss_threshold(
        hardness, evaluation.loss("ensemble"), evaluation.loss("fallback"), 0.5
    )
    assert outcome.coverage == pytest.approx(rule.coverage)
    assert outcome.system_loss < evaluation.loss("ensemble").mean()
    assert rule.misrouting is not None
    np.testing.assert_allclose(rule.misrouting.probability(hardness).mean(), route.mean())  # all weight is on source 0
    half = choose_abstention(Decision(score="entropy", threshold="coverage", coverage=0.6), evaluation)
    assert half.coverage == pytest.approx(0.6)
    assert load_config(None, ["decision.score='learned with queries'"]).decision.score == "learned with queries"


# The decomposition


def test_the_decomposition_is_an_identity_with_the_conditional_fallback_loss() -> None:
    generator = np.random.default_rng(1)
    evaluation = made_evaluation(generator.beta(1, 2, 200), generator)
    rule = AbstentionRule("entropy", 0.5)
    outcome = evaluation.with_abstention("ensemble", rule)
    share = outcome.coverage
    assert 0.5 < share < 0.95
    assert outcome.system_loss == pytest.approx(share * outcome.accepted_loss + (1 - share) * outcome.fallback_loss)
    assert outcome.fallback_loss > outcome.fallback_loss_of_all + 0.1  # hard for one is hard for the other
    assert outcome.gain == pytest.approx(outcome.abstained_loss - outcome.fallback_loss)
    abstained = evaluation.scores["entropy"] > 0.5
    pairs = evaluation.loss("ensemble")[abstained], evaluation.loss("fallback")[abstained]
    interval = ttest_rel(*pairs).confidence_interval(0.95)
    assert (outcome.gain_low, outcome.gain_high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("threshold", "share"), [(math.inf, 1.0), (-math.inf, 0.0)])
def test_the_decomposition_where_a_part_is_empty(threshold: float, share: float) -> None:
    generator = np.random.default_rng(2)
    evaluation = made_evaluation(generator.random(20), generator)
    outcome = evaluation.with_abstention("ensemble", AbstentionRule("entropy", threshold))
    assert outcome.coverage == share
    assert math.isnan(outcome.gain) == (share == 1.0)
    assert math.isnan(outcome.accepted_loss) == (share == 0.0)
    assert outcome.system_loss == pytest.approx(evaluation.loss("ensemble" if share else "fallback").mean())


def test_bounded_losses_query_by_query() -> None:
    generator = np.random.default_rng(3)
    evaluation = made_evaluation(generator.random(5), generator)
    p, y = evaluation.probabilities["ensemble"], evaluation.labels
    for measure, of in (
        ("error", lambda row, k: float(row.argmax() != k)),
        ("brier", lambda row, k: 0.5 * sum((row[j] - (j == k)) ** 2 for j in range(3))),
        ("nll", lambda row, k: min(-math.log(row[k]), 1.5) / 1.5),
    ):
        values = np.array([of(row, k) for row, k in zip(p, y, strict=True)]).reshape(5, -1).mean(1)
        np.testing.assert_allclose(evaluation.bounded_loss("ensemble", measure, 1.5), values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss is 'hinge'; expected 'error', 'brier' or 'nll'"):
        evaluation.bounded_loss("ensemble", "hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip is 0"):
        evaluation.bounded_loss("ensemble", "nll", 0)


# The rule and the task


@pytest.mark.parametrize(
    "rule",
    [
        AbstentionRule(),
        AbstentionRule("support loss", -math.inf, 0.0, "prior mean", certificate=CERTIFICATE),
        AbstentionRule("learned", 0.25, 0.5, "b", PREDICTOR, IsotonicCalibration((0.0, 1.0), (0.1, 0.9))),
    ],
)
def test_a_rule_is_saved_with_the_router(rule: AbstentionRule, tmp_path: Path) -> None:
    text = json.dumps(rule.to_dict(), allow_nan=False)
    assert AbstentionRule.from_dict(json.loads(text)) == rule
    classifier = RoutedClassifier(tiny_router(tiny_config()), rule)
    classifier.save(tmp_path)
    saved = json.loads((tmp_path / "router.json").read_text())
    assert saved["format"] == 3
    assert saved["abstention"] == json.loads(text)


def classifier_with(rule: AbstentionRule, *overrides: str) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(overrides)), rule)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


LABELS = ["b", "a", "c"] * 3


def test_a_score_of_the_queries_decides_batch_by_batch() -> None:
    plain = classifier_with(AbstentionRule("predictive entropy"), "guide.family=catalog", "decision.draws=16")
    task = plain.adapt(images(9, 0), LABELS)
    batches = [images(5, seed) for seed in (1, 2)]
    entropies = []
    for batch in batches:
        p = task.predict_proba(batch, "ensemble").numpy()
        entropies.append(-(p * np.log(p)).sum(1).mean())
        assert task.uncertainty_on(batch) == pytest.approx(entropies[-1], abs=1e-5)
    between = float(np.mean(entropies))
    task = RoutedClassifier(plain.router, AbstentionRule("predictive entropy", between)).adapt(images(9, 0), LABELS)
    assert math.isnan(task.uncertainty)
    assert not task.abstains
    for batch, entropy in zip(batches, entropies, strict=True):
        expected = "fallback" if entropy > between else "ensemble"
        assert task.abstains_on(batch) == (entropy > between)
        assert torch.equal(task.predict_proba(batch), task.predict_proba(batch, expected))  # type: ignore[arg-type]
    assert "every batch of queries" in str(task.explain())
    with pytest.raises(ValueError, match="'predictive entropy' looks at queries; expected the images"):
        task.uncertainty_on(None)
    with pytest.raises(ValueError, match=r"images are \(1, 4, 4\)"):
        task.predict_proba(torch.rand(2, 1, 4, 4))


def test_scores_of_a_task_are_those_of_evaluation() -> None:
    config = tiny_config(["guide.family=catalog", "decision.draws=16"])
    router, pool = tiny_router(config), tiny_pool()
    found: Evaluation = evaluate(
        router.model, router.guide, build_sampler(config, pool, 3), router.features(pool), episodes=3, draws=16
    )
    batch = build_sampler(config, pool, 3).sample(3)
    for i in range(3):
        asked, shots = batch.query.mask[i], batch.support.mask[i]
        for name in (n for n in SCORES if n not in ("variance", "argmax entropy")):
            task = RoutedClassifier(router, AbstentionRule(name)).adapt(
                batch.support.images[i][shots], batch.support.labels[i][shots]
            )
            value = task.uncertainty_on(batch.query.images[i][asked])
            assert value == pytest.approx(found.scores[name][i], abs=2e-5), name
        learned = AbstentionRule("learned", predictor=PREDICTOR)
        task = RoutedClassifier(router, learned).adapt(batch.support.images[i][shots], batch.support.labels[i][shots])
        value = task.uncertainty_on(batch.query.images[i][asked])
        assert value == pytest.approx(learned.uncertainty(found.scores)[i], abs=1e-3)


def test_a_task_says_its_warrant_but_not_where_it_is_none() -> None:
    rule = AbstentionRule(
        "entropy", 10.0, 0.9, misrouting=IsotonicCalibration((0.0, 9.0), (0.25, 0.25)), certificate=CERTIFICATE
    )
    classifier = classifier_with(rule)
    text = str(classifier.adapt(images(9, 0), LABELS).explain())
    assert str(CERTIFICATE) in text
    assert "calibrated probability of misrouting 25%" in text
    refined = str(classifier.adapt(images(9, 0), LABELS, refine="frank-wolfe:steps=2").explain())
    assert "selective risk" not in refined  # other predictions than those that were certified
    assert remove_source(classifier, "c").abstention == replace(rule, certificate=None, misrouting=None)


@pytest.mark.parametrize("overrides", [(), ("guide.family=catalog", "prior.kind=cost_aware", "prior.beta=1.5")])
def test_fallbacks(overrides: tuple[str, ...]) -> None:
    rule = AbstentionRule("entropy", -1.0, 0.0)
    router = classifier_with(rule, *overrides).router
    prior: RoutingPrior = router.model.prior
    names = {"source 0": 0, "a": 0, "b": 1, "c": 2}
    for name, index in names.items():
        expected = torch.eye(5)[index]
        assert torch.equal(fallback_coefficients(name, router.model, router.catalog), expected)
    mean = fallback_coefficients("prior mean", router.model, router.catalog)
    if router.catalog is not None:
        p = router.model.prior.logits.softmax(-1)
        by_hand = sum(p[j] * router.catalog.coefficients[j] for j in range(len(router.catalog)))
        torch.testing.assert_close(mean, by_hand)
        assert mean[0] > mean[1]  # the fallback is cheaper
        last = router.catalog.names[-1]
        assert torch.equal(fallback_coefficients(last, router.model, router.catalog), router.catalog.coefficients[-1])
    else:
        torch.testing.assert_close(mean, torch.tensor([1 / 3] * 3 + [0.5] * 2))
        assert prior.num_blocks == 1
    queries = images(4, 1)
    tasks = [
        RoutedClassifier(router, replace(rule, fallback=name)).adapt(images(9, 0), LABELS)
        for name in ("a", "source 0", "b", "prior mean")
    ]
    answers = [task.predict_proba(queries) for task in tasks]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])
    assert not torch.allclose(answers[2], answers[3])
    assert "falls back to prior mean" in str(tasks[3].explain())
    with pytest.raises(ValueError, match="fallback is 'z'; expected one of source 0, prior mean, a, b, c"):
        RoutedClassifier(router, replace(rule, fallback="z"))


def test_blockwise_fallbacks() -> None:
    router = tiny_router(tiny_config(["sources.blocks={weight='.*weight', bias='.*bias'}"]))
    assert torch.equal(fallback_coefficients("b", router.model), torch.eye(5)[1].expand(2, -1))
    assert fallback_coefficients("prior mean", router.model).sum(-1).tolist() == pytest.approx([2.0, 2.0])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="score is 'margin'; expected one of confidence"):
        AbstentionRule("margin")
    with pytest.raises(ValueError, match="score is 'learned' and the predictor None"):
        AbstentionRule("learned")
    with pytest.raises(ValueError, match="score is 'entropy' and the predictor"):
        AbstentionRule("entropy", predictor=PREDICTOR)
    with pytest.raises(ValueError, match="threshold is NaN"):
        AbstentionRule("entropy", math.nan)
    with pytest.raises(ValueError, match=r"this predictor also reads \['disagreement'\]"):
        AbstentionRule("learned", predictor=PREDICTOR).uncertainty({"entropy": [1.0]})
    with pytest.raises(ValueError, match=r"scores hold \['variance'\]; expected 'entropy'"):
        AbstentionRule("entropy").uncertainty({"variance": [1.0]})
    for wanted in ("margin", "auto with queries and more", "learned with"):
        with pytest.raises(ValueError, match=r"score is .*; expected one of auto, auto with queries, learned"):
            choose_score(all_scores(5, 0), np.ones(5), wanted)
    with pytest.raises(ValueError, match="coverage is 0"):
        coverage_threshold([1.0], 0)
    with pytest.raises(ValueError, match="got 1 episode"):
        cross_fitted_risk({"a": [1.0]}, [1.0])
    with pytest.raises(ValueError, match="got no scores"):
        RiskPredictor.fit({}, [1.0, 2.0])
    with pytest.raises(ValueError, match="penalty is 0"):
        RiskPredictor.fit({"a": [1.0, 2.0]}, [1.0, 2.0], 0)
    with pytest.raises(ValueError, match=r"misrouted holds 0\.5"):
        IsotonicCalibration.fit([1.0, 2.0], [0, 0.5])
