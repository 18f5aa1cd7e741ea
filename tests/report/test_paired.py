"""Paired intervals: SciPy's paired t interval for means, and tails whose difference the pairing makes sure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.report.paired import paired_intervals, tail_gap


def evaluation_of(ours: np.ndarray, theirs: np.ndarray) -> Evaluation:
    """One query an episode, of class 0, with these probabilities of it."""
    count = len(ours)
    zeros, ones = np.zeros(count, dtype=np.int64), np.ones((count, 1))
    return Evaluation(
        probabilities={"a": np.stack([ours, 1 - ours], 1), "b": np.stack([theirs, 1 - theirs], 1)},
        labels=zeros,
        episode=np.arange(count),
        scores={},
        weights=ones,
        support_loss=ones,
        source_loss=0 * ones,
        route=zeros - 1,
        source_of_route=(),
        corrupted_labels=zeros,
        confounded_with=zeros,
        way=zeros + 2,
        shots=zeros + 1,
    )


def test_means_are_scipys_paired_interval() -> None:
    rng = np.random.default_rng(0)
    ours = rng.uniform(0.2, 0.9, 50)
    theirs = np.clip(ours + rng.normal(0.03, 0.05, 50), 0.01, 0.99)
    ahead = paired_intervals({"test": evaluation_of(ours, theirs)}, {"a": "ours", "b": "theirs"}, "a")
    expected = stats.ttest_rel(-np.log(ours), -np.log(theirs)).confidence_interval(0.95)
    assert ahead("Negative log-likelihood", "test", "theirs") == pytest.approx((expected.low, expected.high))
    right = stats.ttest_rel(100.0 * (theirs > 0.5), 100.0 * (ours > 0.5)).confidence_interval(0.95)
    assert ahead("Accuracy", "test", "theirs") == pytest.approx((right.low, right.high))
    assert ahead("Calibration error (ECE)", "test", "theirs") is None


def test_a_tail_that_is_always_better_is_surely_better() -> None:
    """Losses that differ by .1 in every episode: the interval is that number, however wide the losses are."""
    losses = np.random.default_rng(1).exponential(1.0, 80)
    assert tail_gap(losses, losses - 0.1) == pytest.approx((0.1, 0.1))
    low, high = tail_gap(losses, np.random.default_rng(2).permutation(losses))
    assert low < 0 < high
