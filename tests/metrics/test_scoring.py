"""metrics.py (scoring rules and calibration) against scikit-learn, loops written out, and simulated calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from pyro_smat.metrics import brier_score, expected_calibration_error, negative_log_likelihood, reliability_curve
from pyro_smat.metrics.arrays import FloatArray, IntArray
from pyro_smat.metrics.scoring import brier_scores, negative_log_likelihoods


def _predictions(n: int, way: int, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Probabilities ``(n, way)`` and labels drawn from them: perfectly calibrated."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(way) * 0.5, n)
    labels = (probabilities.cumsum(1) < generator.random((n, 1))).sum(1)
    return probabilities, np.minimum(labels, way - 1)


def test_brier_is_scikit_learns() -> None:
    p, y = _predictions(200, 4)
    assert brier_score(p, y) == pytest.approx(brier_score_loss(y, p, labels=range(4), scale_by_half=False))
    p, y = _predictions(200, 2)
    assert brier_score(p, y) / 2 == pytest.approx(brier_score_loss(y, p[:, 1]))


def test_negative_log_likelihood_is_scikit_learns_and_clips() -> None:
    p, y = _predictions(200, 4, seed=1)
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p, labels=range(4)))
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(12 * math.log(10))
    assert negative_log_likelihood([[1.0, 0.0]], [1], clip=0.1) == pytest.approx(math.log(10))


def test_scores_of_single_predictions() -> None:
    p, y = _predictions(20, 3, seed=4)
    assert brier_scores(p, y).tolist() == [brier_score(p[i : i + 1], y[i : i + 1]) for i in range(20)]
    alone = [negative_log_likelihood(p[i : i + 1], y[i : i + 1], clip=0.2) for i in range(20)]
    assert negative_log_likelihoods(p, y, clip=0.2).tolist() == alone


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_loop_over_bins(bins: int) -> None:
    p, y = _predictions(300, 5, seed=2)
    p = (np.round(p[:, :1] * 20) / 20 * [[1, 0, 0, 0, 0]]) + (1 - np.round(p[:, :1] * 20) / 20) * [[0, 1, 0, 0, 0]]
    confidence, right = p.max(1), p.argmax(1) == y
    expected = 0.0
    for b in range(bins):
        inside = (confidence > np.linspace(0, 1, bins + 1)[b]) & (confidence <= np.linspace(0, 1, bins + 1)[b + 1])
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert expected_calibration_error(p, y, bins) == pytest.approx(expected)
    assert reliability_curve(p, y, bins).count.sum() == 300


def test_certain_and_wrong_is_an_error_of_one() -> None:
    assert expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == 1
    assert expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 1]) == 0
    assert brier_score([[1.0, 0.0]], [1]) == 2


def test_calibrated_predictions_pass_and_sharpened_ones_do_not() -> None:
    p, y = _predictions(20000, 4, seed=3)
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert expected_calibration_error(p, y) < 0.02
    assert expected_calibration_error(sharp, y) > 0.1
    curve = reliability_curve(p, y)
    large = curve.count > 500
    np.testing.assert_allclose(curve.accuracy[large], curve.confidence[large], atol=0.06)
    assert (np.diff(curve.confidence) > 0).all()
    assert brier_score(p, y) < brier_score(sharp, y)  # proper: the truth wins
    assert negative_log_likelihood(p, y) < negative_log_likelihood(sharp, y)


def test_tensors_and_a_padded_class_change_nothing() -> None:
    p, y = _predictions(50, 3)
    padded = torch.nn.functional.pad(torch.as_tensor(p).requires_grad_(), (0, 2))
    labels = torch.as_tensor(y)
    for metric in (brier_score, negative_log_likelihood, expected_calibration_error):
        assert metric(padded, labels) == pytest.approx(metric(p, y))


def test_bad_predictions_are_refused_by_row() -> None:
    with pytest.raises(ValueError, match=r"row 1 are \[2.0, 1.0\], sum 3.*softmax"):
        brier_score([[0.5, 0.5], [2.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match="row 0 are"):
        brier_score([[1.5, -0.5]], [0])
    with pytest.raises(ValueError, match=r"label of row 1 is 2; expected an integer in \[0, 2\)"):
        negative_log_likelihood([[0.5, 0.5], [0.5, 0.5]], [0, 2])
    with pytest.raises(ValueError, match=r"label of row 0 is 0.5"):
        negative_log_likelihood([[0.5, 0.5]], [0.5])
    with pytest.raises(ValueError, match="probabilities and labels have 1 and 2 entries"):
        brier_score([[0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match="probabilities hold 1 NaN"):
        brier_score([[math.nan, 0.5]], [0])
    with pytest.raises(ValueError, match="bins is 0"):
        expected_calibration_error([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(ValueError, match="clip is 0"):
        negative_log_likelihood([[0.5, 0.5]], [0], clip=0)
