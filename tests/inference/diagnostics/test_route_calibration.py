"""Calibration against known routes, reliability against scikit-learn, conformal sets of routings."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import sharpen
from sklearn.isotonic import IsotonicRegression

from pyro_smat.inference.diagnostics.reliability import reliability_fit
from pyro_smat.inference.diagnostics.route_calibration import route_calibration, routing_sets


def world(n: int = 600, routes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(0.7 * np.ones(routes), n)
    return q, draw(q, rng)


def draw(q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (q.cumsum(1) < rng.random((len(q), 1))).sum(1).clip(max=q.shape[1] - 1)


def test_known_truth_biased_and_underdispersed() -> None:
    q, truth = world()
    exact = route_calibration(q, truth, power_repeats=20)
    assert exact.overall.sharpness.calibrated
    assert exact.overall.reference == "route"
    assert exact.reliability["all routings"].share_outside() < 0.3
    assert exact.accuracy == pytest.approx(exact.confidence, abs=0.06)
    assert exact.overall.power > 0.5
    biased = route_calibration(sharpen(q * [4.0, 1, 1, 1], 1.0), truth, power_repeats=0)
    assert "is 0" in biased.overall.rejected
    assert biased.reliability["0"].share_outside() > 0.5
    sharp = route_calibration(sharpen(q, 1.6), truth, power_repeats=0)
    assert sharp.overall.p_value < 0.01
    assert sharp.overall.sharpness.estimate == pytest.approx(1.6, abs=0.15)
    assert sharp.reliability["all routings"].miscalibration > 2 * exact.reliability["all routings"].miscalibration


def test_a_calibrated_posterior_is_rejected_as_often_as_the_level_says() -> None:
    """Over forty worlds and one seed of the tie breaker: more than six rejections at .05 have probability .003."""
    found = [route_calibration(*world(300, seed=s), resamples=0, power_repeats=0).overall for s in range(40)]
    assert sum(each.p_value < 0.05 for each in found) <= 6


def test_a_generalist_that_is_never_true_is_taken_out() -> None:
    q, truth = world()
    diluted = np.concatenate([0.7 * q, np.full((len(q), 1), 0.3)], 1)  # a fifth source with prior mass
    found = route_calibration(diluted, truth, names=[*"abcd", "generalist"], power_repeats=0)
    assert found.overall.p_value < 1e-3
    assert found.given_known is not None
    assert found.given_known.p_value > 0.05
    assert "is generalist" not in found.given_known.pits


def test_conditions_apart() -> None:
    q, truth = world(1000)
    condition = np.repeat(["clean", "label noise"], [600, 400])
    said = np.where((condition == "clean")[:, None], q, sharpen(q, 3.0))
    condition[-30:] = "confounded"
    truth[:20] = -1
    found = route_calibration(said, truth, condition=condition, power_repeats=0)
    assert found.by_condition["clean"].p_value > 0.05
    assert found.by_condition["label noise"].p_value < 1e-3
    assert found.too_few == {"confounded": 30}
    assert found.excluded == 20
    assert found.by_condition["clean"].num_episodes == 580


def test_the_curve_is_scikit_learns_and_the_brier_score_adds_up() -> None:
    q, truth = world(300)
    q = q.round(2)  # ties
    q[:, -1] = (1 - q[:, :-1].sum(1)).round(2).clip(0)
    for routing in (None, 1):
        fit = reliability_fit(q, truth, routing=routing, resamples=0)
        columns = np.arange(4) if routing is None else np.array([routing])
        said, hit = q[:, columns].ravel(), (truth[:, None] == columns).ravel().astype(float)
        theirs = IsotonicRegression(y_min=0, y_max=1).fit(said, hit)
        np.testing.assert_allclose(np.interp(said, fit.said, fit.happened), theirs.predict(said), atol=1e-9)
        assert fit.brier == pytest.approx(np.square(hit - said).mean())
        assert fit.miscalibration >= 0
        assert fit.discrimination >= 0


def test_conformal_sets_cover_and_their_size_is_the_doubt() -> None:
    covered, sizes = [], []
    for seed in range(40):
        q, truth = world(400, seed=seed)
        for power in (1.0, 3.0):  # valid for an uncalibrated posterior as well
            said = sharpen(q, power)
            found = routing_sets(said[:200], truth[:200], 0.9)
            sets = found.sets(said[200:])
            covered.append(sets[np.arange(200), truth[200:]].mean())
            sizes.append(found.size(said[200:]))
    assert np.mean(covered) >= 0.89
    assert np.mean(covered) < 0.94
    assert min(size.min() for size in sizes) == 1
    assert max(size.max() for size in sizes) == 4
    assert "90%" in found.statement


def test_refused() -> None:
    q, truth = world(200)
    with pytest.raises(ValueError, match="0 of 200 episodes have a known route"):
        route_calibration(q, np.full(200, -1))
    with pytest.raises(ValueError, match=r"too few for sets of coverage 0\.9"):
        routing_sets(q[:5], truth[:5])
    with pytest.raises(ValueError, match="no distributions"):
        route_calibration(2 * q, truth)
