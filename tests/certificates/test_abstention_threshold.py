"""The certified threshold: violations by simulation against plug-in, and the walk step by step."""

from __future__ import annotations

import numpy as np
import pytest
from guarantees.decisions import episodes, plug_in_threshold, selective_risk
from scipy.stats import beta, binom

from pyro_smat.certificates import select_abstention_threshold


@pytest.mark.parametrize("binary", [True, False])
def test_the_guarantee_holds_where_plug_in_fails_half_the_time(binary: bool) -> None:
    risk, delta, runs = 0.1, 0.1, 120
    validation = np.random.default_rng(0).random(200)
    violated, plug_in, coverage = 0, 0, []
    for seed in range(runs):
        u, losses = episodes(np.random.default_rng(seed + 1), 500, binary=binary)
        found = select_abstention_threshold(u, losses, risk, delta, validation_scores=validation, seed=seed)
        violated += selective_risk(found.threshold) > risk
        coverage.append(found.coverage)
        plug_in += selective_risk(plug_in_threshold(u, losses, risk)) > risk
    assert violated <= beta.ppf(0.999, runs * delta + 1, runs * (1 - delta)) * runs
    assert plug_in > 0.3 * runs
    assert np.mean(coverage) > 0.5  # the oracle accepts sqrt(.6) = .77


def test_the_walk_step_by_step() -> None:
    u, losses = episodes(np.random.default_rng(3), 400, binary=True)
    validation = np.random.default_rng(4).random(120)
    found = select_abstention_threshold(u, losses, 0.08, 0.1, validation_scores=validation)
    grid = np.unique(np.sort(validation)[np.ceil(np.arange(1, 41) / 40 * 120).astype(int) - 1])
    expected = -np.inf
    for eta in grid:
        kept = losses[u <= eta]
        if len(kept) < np.ceil(np.log(0.1) / np.log(0.92)):
            continue
        if binom.cdf(kept.sum(), len(kept), 0.08) > 0.1:
            break
        expected = eta
    assert found.threshold == expected
    assert found.p_values[-1] > 0.1
    assert (found.p_values[:-1] <= 0.1).all()
    assert found.certificate is not None
    assert found.certificate.bound == 0.08
    assert found.certificate.count == (u <= expected).sum()
    assert found.certificate.quantity == "selective risk"


def test_a_score_that_cannot_be_certified_accepts_nothing() -> None:
    generator = np.random.default_rng(0)
    found = select_abstention_threshold(
        generator.random(300), np.ones(300), 0.1, validation_scores=generator.random(50)
    )
    assert (found.threshold, found.coverage, found.certificate) == (-np.inf, 0.0, None)


def test_infinite_scores_and_too_few_episodes() -> None:
    u = np.random.default_rng(0).random(300)
    u[:10] = np.inf
    found = select_abstention_threshold(u, np.zeros(300), 0.1, validation_scores=u)
    assert found.coverage == 1.0
    few = select_abstention_threshold(u[20:40], np.zeros(20), 0.1, validation_scores=u)  # 22 are needed
    assert few.coverage == 0.0
    assert len(few.tested) == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 entries"):
        select_abstention_threshold([1, 2, 3], [0, 1], 0.1, validation_scores=[1])
    with pytest.raises(ValueError, match="risk is 1"):
        select_abstention_threshold([1, 2], [0, 1], 1, validation_scores=[1])
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        select_abstention_threshold([1, 2], [0, 2], 0.1, validation_scores=[1])


@pytest.mark.parametrize("source", ["scores", "validation", "both"])
def test_minus_infinity_is_no_threshold_that_passed(source: str) -> None:
    """Half of the tasks score minus infinity and lose everything: nothing is accepted, so nothing is certified."""
    rng = np.random.default_rng(0)
    u, validation = rng.random(200), rng.random(100)
    if source != "validation":
        u[::2] = -np.inf
    if source != "scores":
        validation[::2] = -np.inf
    found = select_abstention_threshold(u, np.ones(200), 0.1, validation_scores=validation)
    assert (found.threshold, found.coverage, found.certificate) == (-np.inf, 0.0, None)
    assert not found.accepts(u).any()
    assert np.isfinite(found.tested).all()


def test_scores_of_minus_infinity_count_under_every_threshold_that_is_tested() -> None:
    """They are the surest tasks; a certificate speaks of them too, and its estimate holds their losses."""
    rng = np.random.default_rng(1)
    u, losses = rng.random(400), (rng.random(400) < 0.02).astype(float)
    u[::2] = -np.inf
    found = select_abstention_threshold(u, losses, 0.1, validation_scores=u[1::2])
    assert found.certificate is not None
    assert found.threshold > 0
    np.testing.assert_array_equal(found.accepts(u), u <= found.threshold)
    assert found.certificate.count == (u <= found.threshold).sum() > 200
    assert found.certificate.estimate == losses[u <= found.threshold].mean()
    losses[::2] = 1.0  # and they alone spoil it
    assert select_abstention_threshold(u, losses, 0.1, validation_scores=u[1::2]).certificate is None


@pytest.mark.parametrize("seed", range(8))
def test_every_certificate_is_of_a_threshold_that_was_tested_and_passed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    u = rng.choice([-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf], 300)
    validation = rng.choice([-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf], 50)
    losses = (rng.random(300) < 0.15 * (u > 0)).astype(float)
    found = select_abstention_threshold(u, losses, 0.1, validation_scores=validation)
    assert (found.certificate is None) == (found.threshold == -np.inf) == (found.coverage == 0)
    if found.certificate is not None:
        assert found.p_values[found.tested.tolist().index(found.threshold)] <= 0.1
