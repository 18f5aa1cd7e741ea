"""calibration.py against torchmetrics, loops, textbook terms and simulations where the truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pyro_smat.metrics import (
    brier_decomposition,
    brier_score,
    debiased_calibration_error,
    expected_calibration_error,
    reliability_curve,
    reliability_intervals,
)
from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.metrics.calibration import Binning

BINNINGS: tuple[Binning, ...] = ("width", "mass")


def calibrated(count: int, way: int, seed: int, *, concentration: float = 0.5) -> tuple[FloatArray, IntArray]:
    """Probabilities ``(count, way)`` and labels drawn from them."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(way, concentration), count)
    return p, np.minimum((p.cumsum(1) < generator.random((count, 1))).sum(1), way - 1)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_torchmetrics(bins: int) -> None:
    """No confidence on an edge: there torchmetrics counts to the bin above, we to the one below."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # seconds to import

    p, y = calibrated(700, 5, 0)
    theirs = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), 5, n_bins=bins, norm="l1")
    assert expected_calibration_error(p, y, bins) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_adaptive_error_is_the_loop_over_sorted_chunks(bins: int) -> None:
    p, y = calibrated(420, 3, 1)
    order = np.argsort(p.max(1))
    confidence, right = p.max(1)[order], (p.argmax(1) == y)[order]
    ends = [int(np.ceil(420 * b / bins)) for b in range(bins + 1)]
    chunks = [slice(a, b) for a, b in itertools.pairwise(ends)]
    expected = sum(abs(right[c].sum() - confidence[c].sum()) for c in chunks) / 420
    assert expected_calibration_error(p, y, bins, "mass") == pytest.approx(expected)
    assert reliability_curve(p, y, bins, "mass").count.tolist() == [c.stop - c.start for c in chunks]


def test_adaptive_bins_keep_ties_together() -> None:
    confidence = np.repeat([0.6, 0.7, 0.9], [50, 5, 5])
    p = np.stack([confidence, 1 - confidence], 1)
    curve = reliability_curve(p, np.zeros(60), 10, "mass")
    np.testing.assert_allclose(curve.confidence, [0.6, 0.7, 0.9])
    assert curve.count.tolist() == [50, 5, 5]


def squared(p: FloatArray, y: IntArray, binning: Binning) -> tuple[float, float]:
    """The plug-in and the debiased squared error, the latter before it is cut at 0, by the formulas written out."""
    curve = reliability_curve(p, y, 15, binning)
    weights, squares = curve.count / curve.count.sum(), (curve.accuracy - curve.confidence) ** 2
    several = curve.count > 1
    noise = (curve.accuracy * (1 - curve.accuracy))[several] / (curve.count[several] - 1)
    return float(weights @ squares), float(weights[several] @ (squares[several] - noise))


@pytest.mark.parametrize("binning", BINNINGS)
def test_debiased_error_of_calibrated_predictions_is_near_zero_where_plug_in_is_not(binning: Binning) -> None:
    found = []
    for seed in range(60):
        p, y = calibrated(500, 4, seed)
        plug_in, debiased = squared(p, y, binning)
        error = debiased_calibration_error(p, y, binning=binning)
        assert error == pytest.approx(max(0.0, debiased) ** 0.5)
        found.append((expected_calibration_error(p, y, binning=binning), error, plug_in, debiased))
    plug_in_error, error, plug_in, debiased = np.mean(found, axis=0)
    assert plug_in_error > 0.04
    assert error < plug_in_error / 2
    assert abs(debiased) < 0.15 * plug_in
    assert np.median([e for _, e, _, _ in found]) < 0.02


def test_debiased_error_finds_a_known_error() -> None:
    """Two confidences, one of them .1 too high: a squared error of .005."""
    errors = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        confidence = np.repeat([0.6, 0.9], 500)
        wrong = generator.random(1000) > np.repeat([0.6, 0.8], 500)
        p = np.stack([confidence, 1 - confidence], 1)
        errors.append(debiased_calibration_error(p, wrong.astype(int), bins=2))
    assert np.mean(np.square(errors)) == pytest.approx(0.005, abs=6e-4)


def test_single_predictions_have_no_variance_to_subtract() -> None:
    assert debiased_calibration_error([[0.9, 0.1], [0.6, 0.4]], [1, 1], bins=2) == 0


@pytest.mark.parametrize("binning", BINNINGS)
@pytest.mark.parametrize("bins", [1, 2, 7, 15, 400])
def test_terms_sum_to_the_brier_score_for_any_bins(bins: int, binning: Binning) -> None:
    p, y = calibrated(300, 4, 2)
    terms = brier_decomposition(p, y, bins, binning)
    assert terms.score == pytest.approx(brier_score(p, y), abs=1e-12)
    assert terms.reliability >= 0
    frequencies = np.bincount(y, minlength=4) / 300
    assert terms.uncertainty == pytest.approx((frequencies * (1 - frequencies)).sum())


def test_textbook_terms_when_predictions_are_constant_in_bins() -> None:
    """Murphy 1973: over the distinct predictions, per class."""
    generator = np.random.default_rng(3)
    values = np.array([[0.1, 0.25, 0.65], [0.45, 0.05, 0.5], [0.3, 0.35, 0.35]])
    which, y = generator.integers(3, size=200), generator.integers(3, size=200)
    p = values[which]
    reliability = resolution = 0.0
    for k in range(3):
        base = (y == k).mean()
        for value in np.unique(values[:, k]):
            inside = p[:, k] == value
            frequency = (y[inside] == k).mean()
            reliability += inside.mean() * (value - frequency) ** 2
            resolution += inside.mean() * (frequency - base) ** 2
    terms = brier_decomposition(p, y, 20)
    assert terms.reliability == pytest.approx(reliability)
    assert terms.resolution == pytest.approx(resolution)
    assert terms.score == pytest.approx(brier_score(p, y))


def test_reliability_tells_sharpened_from_calibrated() -> None:
    p, y = calibrated(20_000, 3, 4)
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert brier_decomposition(p, y).reliability < 2e-3 < 0.03 < brier_decomposition(sharp, y).reliability


def test_intervals_cover_when_the_queries_of_an_episode_depend_and_naive_ones_do_not() -> None:
    """One bin of confidence .7; the accuracy of an episode is Beta(3.5, 1.5), so the truth is .7."""
    runs, episodes, queries = 120, 40, 15
    episode = np.repeat(np.arange(episodes), queries)
    p = np.tile([0.7, 0.3], (episodes * queries, 1))
    covered = {"episodes": 0, "queries": 0}
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        accuracy = np.repeat(generator.beta(3.5, 1.5, episodes), queries)
        y = (generator.random(episodes * queries) > accuracy).astype(int)
        for unit, of_query in {"episodes": episode, "queries": np.arange(len(y))}.items():
            low, high = reliability_intervals(p, y, of_query, level=0.9, resamples=200, seed=seed)
            covered[unit] += low[0] <= 0.7 <= high[0]
    assert 0.82 * runs < covered["episodes"] < 0.97 * runs  # nominal .9
    assert covered["queries"] < 0.72 * runs


def test_intervals_have_an_end_for_every_filled_bin() -> None:
    p, y = calibrated(600, 3, 5)
    episode = np.arange(600) // 20
    for binning in BINNINGS:
        curve = reliability_curve(p, y, 10, binning)
        low, high = reliability_intervals(p, y, episode, 10, binning)
        assert low.shape == high.shape == curve.accuracy.shape
        assert (low <= curve.accuracy + 1e-9).all()
        assert (curve.accuracy <= high + 1e-9).all()
    again = reliability_intervals(p, y, torch.from_numpy(episode), 10, binning)
    np.testing.assert_array_equal(again, (low, high))


def test_a_bin_that_no_resample_reaches_has_no_interval() -> None:
    """Its one query is in one of two episodes, which the single resample leaves out."""
    p, y = [[0.9, 0.1], [0.6, 0.4]], [0, 0]
    for seed in range(20):
        low, high = reliability_intervals(p, y, [0, 1], bins=2, binning="mass", resamples=1, seed=seed)
        assert np.array_equal(np.isnan(low), np.isnan(high))
        if np.isnan(low).any():
            return
    raise AssertionError("twenty resamples drew both episodes")


def test_bad_input_is_refused() -> None:
    p, y = [[0.5, 0.5], [0.7, 0.3]], [0, 1]
    for metric in (expected_calibration_error, debiased_calibration_error, brier_decomposition, reliability_curve):
        with pytest.raises(ValueError, match="bins is 0"):
            metric(p, y, bins=0)
        with pytest.raises(ValueError, match="binning is 'adaptive'; expected 'width' or 'mass'"):
            metric(p, y, binning="adaptive")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="row 0 are"):
            metric([[0.5, 0.7], [0.7, 0.3]], y)
        with pytest.raises(ValueError, match="label of row 1 is 3"):
            metric(p, [0, 3])
    with pytest.raises(ValueError, match="probabilities and episode have 2 and 1 entries"):
        reliability_intervals(p, y, [0])
    with pytest.raises(ValueError, match="level is 95"):
        reliability_intervals(p, y, [0, 1], level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        reliability_intervals(p, y, [0, 1], resamples=0)
