"""intervals.py against scipy, numpy and its own promise: 95% intervals that hold the truth about 95% of the time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_smat.metrics import aurc, bootstrap_interval, episode_interval, episode_quantile, intervals
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.risk import cvar


def test_episode_interval_is_the_one_sample_t_interval() -> None:
    values = np.random.default_rng(0).random(37)
    reference = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = episode_interval(torch.as_tensor(values), level=0.9)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert interval.value == pytest.approx(values.mean())


def test_one_episode_has_no_interval_and_equal_ones_a_point() -> None:
    single = episode_interval([0.5])
    assert single.value == 0.5
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert math.isnan(bootstrap_interval([0.5], np.median).low)
    same = episode_interval([0.5, 0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)


def test_bootstrap_is_repeatable_and_covers_the_median() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for seed in range(100):
        values = generator.exponential(size=60)
        interval = bootstrap_interval(values, np.median, seed=seed, resamples=200)
        assert interval.value == np.median(values)
        hits += interval.low <= math.log(2) <= interval.high
    assert 0.88 <= hits / 100 <= 0.99
    values = generator.random(30)
    assert bootstrap_interval(values, np.mean, seed=7) == bootstrap_interval(values, np.mean, seed=7)
    assert bootstrap_interval(values, np.mean, seed=7) != bootstrap_interval(values, np.mean, seed=8)


def test_bootstrap_of_the_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(4).random(100)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = bootstrap_interval(values, np.mean, resamples=4000)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.005)


def test_bootstrap_resamples_rows_of_pairs_together() -> None:
    generator = np.random.default_rng(5)
    losses = generator.random(80)
    pairs = np.stack([losses, losses], 1)  # score = loss: every resample is in its oracle order
    oracle = bootstrap_interval(pairs, lambda rows: aurc(rows[:, 0], rows[:, 1]), resamples=100)
    shuffled = bootstrap_interval(
        np.stack([generator.permutation(losses), losses], 1), lambda rows: aurc(rows[:, 0], rows[:, 1]), resamples=100
    )
    assert oracle.low <= oracle.value <= oracle.high < shuffled.low


def test_bootstrap_takes_a_tail_statistic_and_skips_undefined_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).random(50)
    tail = bootstrap_interval(values, lambda x: float(cvar(torch.from_numpy(x), 0.1)), resamples=50)
    for at_once in (1, 7 * len(values), 2**20):  # resamples in one piece or several
        monkeypatch.setattr(intervals, "AT_ONCE", at_once)
        together = bootstrap_interval(
            values, lambda x: cvar(torch.from_numpy(x), 0.1).numpy(), resamples=50, vectorized=True
        )
        assert together == tail
    assert tail.low <= tail.value == pytest.approx(np.sort(values)[-5:].mean())

    def defined_without_the_first(rows: FloatArray) -> float:
        return math.nan if (rows == values[0]).any() else 1.0

    assert bootstrap_interval(values, defined_without_the_first, resamples=50).high == 1
    assert math.isnan(bootstrap_interval(values, lambda _: math.nan, resamples=5).high)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_episode_quantile_is_the_inverted_cdf(level: float) -> None:
    values = np.random.default_rng(7).random(53)
    assert episode_quantile(values, level) == np.quantile(values, level, method="inverted_cdf")


def test_episode_quantile_does_not_slip_a_rank() -> None:
    assert 0.07 * 100 > 7
    assert episode_quantile(np.arange(1, 101), 0.07) == 7


def test_bad_arguments_are_refused() -> None:
    for call in (lambda: episode_interval([1, 2], 95), lambda: bootstrap_interval([1, 2], np.mean, level=1.0)):
        with pytest.raises(ValueError, match=r"expected a confidence in \(0, 1\)"):
            call()
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap_interval([1, 2], np.mean, resamples=0)
    with pytest.raises(ValueError, match="values hold 1 NaN"):
        episode_interval([1, math.nan])
    with pytest.raises(ValueError, match=r"fraction in \(0, 1\]"):
        episode_quantile([1, 2], 0)
