"""The conformal martingale: uniform p-values under exchangeability, few false alarms, quick true ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

from pyro_smat.certificates.drift import ConformalMartingale


def highest(reference: np.ndarray, stream: np.ndarray, seed: int = 0) -> float:
    martingale = ConformalMartingale.from_reference(reference, seed)
    for score in stream:
        martingale.update(score)
    return martingale.highest


@pytest.mark.parametrize("levels", [0, 3])
def test_false_alarms_are_as_rare_as_said(levels: int) -> None:
    """At alpha = 0.1, over 150 streams of 150; also when scores tie heavily."""
    alarms = 0
    for seed in range(150):
        scores = np.random.default_rng(seed).random(250)
        scores = np.floor(scores * levels) if levels else scores
        alarms += highest(scores[:100], scores[100:], seed) >= math.log(10)
    assert alarms <= 150 * 0.1 + 3 * math.sqrt(150 * 0.09)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_shift_in_either_direction_is_found(shift: float) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        assert highest(generator.normal(size=200), generator.normal(size=200) + shift) > math.log(200)


def test_wealth_by_hand_and_a_mean_of_one() -> None:
    """After one score the wealth is 1 + 0 x (p - 1/2): the three bets cancel; later ones follow the luckier."""
    martingale = ConformalMartingale.from_reference([1.0, 2.0, 3.0])
    assert martingale.update(10.0) == pytest.approx(0.0)
    tie = np.random.default_rng([0, 0]).random()
    p = (0 + tie * 1) / 4
    expected = np.array([1 - (p - 0.5), 1.0, 1 + (p - 0.5)]) / 3
    np.testing.assert_allclose(martingale.shares, expected)
    second = martingale.update(9.0)  # one above, none equal, four below
    p2 = (1 + np.random.default_rng([0, 1]).random()) / 5
    mixed = 0.99 * expected + 0.01 / 3
    assert second == pytest.approx(math.log((mixed * (1 + np.array([-1, 0, 1]) * (p2 - 0.5))).sum()))
    wealth = [math.exp(ConformalMartingale.from_reference([1, 2, 2, 3], s).update(2)) for s in range(5)]
    assert np.mean(wealth) == pytest.approx(1)


def test_p_values_are_uniform() -> None:
    generator, values = np.random.default_rng(0), []
    martingale = ConformalMartingale.from_reference(generator.random(20))
    for _ in range(500):
        before = np.array(martingale.shares)
        martingale.update(generator.random())
        after = np.array(martingale.shares)
        spread = 0.99 * before + 0.01 / 3
        ratio = after[2] / after[1] * spread[1] / spread[2]  # 1 + (p - 1/2)
        values.append(ratio - 0.5)
    assert kstest(values, "uniform").pvalue > 0.01


def test_goes_on_where_it_was_saved() -> None:
    generator = np.random.default_rng(0)
    whole = ConformalMartingale.from_reference(generator.random(30), seed=4)
    scores = generator.random(40)
    for score in scores[:20]:
        whole.update(score)
    copy = ConformalMartingale(**whole.to_dict())
    copy.seen, copy.shares = list(copy.seen), list(copy.shares)
    for score in scores[20:]:
        assert copy.update(score) == whole.update(score)
    assert copy.steps == 40


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ConformalMartingale.from_reference([0.0]).update(float("nan"))
    with pytest.raises(ValueError, match="at least one"):
        ConformalMartingale.from_reference([])
