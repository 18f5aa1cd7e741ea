"""Conformal thresholds: by brute force, what they promise by simulation, and what they do not promise beside it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import beta

from pyro_smat.certificates import LabelSetThreshold, label_set_threshold, risk_controlled_threshold
from pyro_smat.metrics.arrays import FloatArray

# Risk control


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("risk", [0.03, 0.1, 0.3])
def test_the_threshold_by_brute_force(seed: int, risk: float) -> None:
    generator = np.random.default_rng(seed)
    u, losses = np.round(generator.random(30), 1), generator.random(30)  # with ties
    found = risk_controlled_threshold(u, losses, risk)
    grid = np.linspace(-0.05, 1.15, 1201) + 1e-5  # beside the scores
    fits = [eta for eta in grid if (losses[u < eta].sum() + 1) / 31 <= risk]
    if not fits:
        assert found.threshold == -math.inf
    elif len(fits) == len(grid):
        assert found.threshold == math.inf
    else:
        assert max(fits) <= found.threshold + 2e-3
        assert found.threshold <= max(fits) + 2e-3
    kept = u <= found.threshold
    assert found.coverage == kept.mean()
    assert found.estimate == pytest.approx((losses * kept).mean())
    assert found.estimate <= risk


def test_the_joint_risk_is_controlled_on_average_and_not_more() -> None:
    """Scores uniform, mean loss u: the joint risk of threshold eta is eta^2 / 2."""
    risk, count, runs = 0.1, 60, 3000
    achieved = np.empty(runs)
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        u = generator.random(count)
        found = risk_controlled_threshold(u, generator.random(count) < u, risk)
        achieved[seed] = np.clip(found.threshold, 0, 1) ** 2 / 2
    error = achieved.std() / math.sqrt(runs)
    assert achieved.mean() <= risk + 3 * error
    assert achieved.mean() > risk - 1 / count  # and not by refusing everything
    assert (achieved > risk).mean() > 0.25  # no statement with high probability
    assert "in expectation" in str(found)
    assert "not with high probability" in str(found)


def test_risk_control_at_its_ends() -> None:
    assert risk_controlled_threshold([0.1, 0.2], [1.0, 1.0], 0.3).threshold == -math.inf  # 1 / 3 > 0.3
    everything = risk_controlled_threshold(np.arange(99), np.zeros(99), 0.01)
    assert (everything.threshold, everything.coverage) == (math.inf, 1.0)
    infinite = risk_controlled_threshold([0.0, 1.0, math.inf, math.inf], [0, 0, 1, 1], 0.3)
    assert 1.0 <= infinite.threshold < math.inf
    with pytest.raises(ValueError, match="risk is 0"):
        risk_controlled_threshold([1], [0], 0)
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        risk_controlled_threshold([1], [2], 0.5)
    with pytest.raises(ValueError, match="2 and 1 entries"):
        risk_controlled_threshold([1, 2], [1], 0.5)


@pytest.mark.parametrize(
    ("scores", "losses", "risk"),
    [
        ([-math.inf, 1.0], [1.0, 0.0], 0.4),
        ([-math.inf] * 50 + [1.0] * 50, [1.0] * 100, 0.1),
        ([-math.inf, -math.inf, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], 0.3),
    ],
)
def test_scores_of_minus_infinity_are_not_accepted_by_the_threshold_that_accepts_nothing(scores, losses, risk) -> None:
    found = risk_controlled_threshold(scores, losses, risk)
    assert (found.threshold, found.coverage, found.estimate) == (-math.inf, 0.0, 0.0)
    assert not found.accepts(scores).any()
    sure = risk_controlled_threshold(scores, np.zeros(len(losses)), 0.5)
    assert (sure.threshold, sure.coverage) == (math.inf, 1.0)
    assert sure.accepts(scores).all()


# Label sets


def answers(generator: np.random.Generator, episodes: int, queries: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Probabilities of four classes, labels and episodes; some episodes are hard for all of their queries."""
    episode = np.repeat(np.arange(episodes), queries)
    skill = np.where(generator.random(episodes) < 0.25, 0.0, 3.0)[episode]
    labels = generator.integers(4, size=len(episode))
    logits = generator.standard_normal((len(episode), 4)) + skill[:, None] * (np.arange(4) == labels[:, None])
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True), labels.astype(float), episode.astype(float)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_without_episodes_it_is_split_conformal(coverage: float) -> None:
    p, labels, _ = answers(np.random.default_rng(0), 49, 1)
    misfit = np.sort(1 - p[np.arange(49), labels.astype(int)])
    expected = misfit[math.ceil(50 * coverage) - 1]
    found = label_set_threshold(p, labels, coverage)
    assert found.threshold == expected
    assert (found.episodes, found.queries) == (49, 49)
    sets = found.sets(p)
    assert sets.tolist() == [[1 - value <= expected for value in row] for row in p]
    assert sets[np.arange(49), labels.astype(int)].sum() == math.ceil(50 * coverage)


def test_episodes_count_alike_however_many_queries_they_have() -> None:
    p = np.array([[0.9, 0.1]] * 6 + [[0.4, 0.6], [0.2, 0.8]])
    labels, episode = np.zeros(8), np.array([0, 0, 0, 0, 0, 0, 1, 2])
    assert label_set_threshold(p, labels, 0.25, episode=episode).threshold == pytest.approx(0.1)
    assert label_set_threshold(p, labels, 0.26, episode=episode).threshold == pytest.approx(0.6)
    assert label_set_threshold(p, labels, 0.75, episode=episode).threshold == pytest.approx(0.8)
    assert label_set_threshold(p, labels, 0.76, episode=episode).threshold == math.inf
    assert label_set_threshold(p, labels, 0.76).threshold == pytest.approx(0.6)  # as if queries were independent


def test_coverage_over_new_episodes() -> None:
    """A query of a new episode; treating queries as independent covers too little of them."""
    coverage, runs = 0.8, 1500
    hits, naive = np.empty(runs), np.empty(runs)
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        p, labels, episode = answers(generator, 12, 10)
        new, truth, _ = answers(generator, 40, 1)
        for store, owner in ((hits, episode), (naive, None)):
            sets = label_set_threshold(p, labels, coverage, episode=owner).sets(new)
            store[seed] = sets[np.arange(40), truth.astype(int)].mean()
    error = hits.std() / math.sqrt(runs)
    assert hits.mean() >= coverage - 3 * error
    assert hits.mean() < coverage + 1 / 12
    assert naive.mean() < coverage - 3 * naive.std() / math.sqrt(runs)


def test_label_sets_are_saved_and_speak_of_their_population() -> None:
    for threshold in (0.25, math.inf):
        made = LabelSetThreshold(threshold, 0.9, 30, 300, "new episodes from this pool")
        assert LabelSetThreshold.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made
    assert "at least 90%, marginally over episodes" in str(made)
    assert "new episodes from this pool" in str(made)
    assert made.sets([[0.0, 1.0]]).all()


def test_the_exact_probability_of_coverage_is_that_of_an_order_statistic() -> None:
    """With continuous scores the coverage given the calibration set is Beta(k, n + 1 - k)."""
    n, coverage, runs = 19, 0.9, 400
    achieved = []
    for seed in range(runs):
        q = np.random.default_rng(seed).random(n)  # p of the true label; uniform
        threshold = label_set_threshold(np.stack([q, 1 - q], 1), np.zeros(n), coverage).threshold
        achieved.append(threshold)  # P(1 - p <= t) = t
    k = math.ceil((n + 1) * coverage)
    expected = beta(k, n + 1 - k)
    assert np.mean(achieved) == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(runs))
    assert np.mean(np.array(achieved) < expected.median()) == pytest.approx(0.5, abs=0.1)


def test_bad_calibrations_are_refused() -> None:
    with pytest.raises(ValueError, match="coverage is 1"):
        label_set_threshold([[0.5, 0.5]], [0], 1)
    with pytest.raises(ValueError, match="probabilities of row 0"):
        label_set_threshold([[0.5, 0.9]], [0])
    with pytest.raises(ValueError, match="2 and 1 entries"):
        label_set_threshold([[0.5, 0.5]], [0], episode=[0, 1])
