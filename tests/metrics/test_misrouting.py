"""Excess loss by independent halves against the known truth, and against the trap of labelling with one half."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pyro_smat.metrics import excess_loss, misrouting_detection
from pyro_smat.metrics.arrays import FloatArray

TASKS, CANDIDATES = 4000, 8


def halves(truth: FloatArray, noise: FloatArray | float, seed: int) -> tuple[FloatArray, FloatArray]:
    """Two independent measurements of the true losses ``(N, J)``."""
    draws = np.random.default_rng(seed).standard_normal((2, *truth.shape))
    first, second = truth + np.reshape(noise, (-1, 1)) * draws
    return first, second


def test_by_hand() -> None:
    first, second = [[0.1, 0.5, 0.3], [0.2, 0.0, 0.9]], [[0.4, 0.2, 0.3], [0.3, 0.1, 0.8]]
    # Task 0: A names 0, B names 1; ((.3 - .4) + (.3 - .5)) / 2. Task 1: both name 1; (.3 - .1 + .2 - 0) / 2.
    np.testing.assert_allclose(excess_loss(first, second, [2, 0]), [-0.15, 0.2])


def test_candidates_that_are_equally_good_have_no_excess_but_one_half_says_so() -> None:
    """The winner's curse: the score is the noise of the queries and knows nothing of routing."""
    noise = np.linspace(0.05, 0.5, TASKS)
    first, second = halves(np.full((TASKS, CANDIDATES), 0.5), noise, 0)
    chosen = np.random.default_rng(1).integers(CANDIDATES, size=TASKS)
    found = misrouting_detection(noise, first, second, chosen)
    assert abs(excess_loss(first, second, chosen).mean()) < 0.02
    assert (np.abs(found.excess) < 4 * found.standard_error).all()
    assert found.auroc == pytest.approx(0.5, abs=0.05)
    same = misrouting_detection(noise, first, first, chosen)
    assert same.excess.mean() > 0.3
    assert (same.excess > 10 * same.standard_error).all()
    assert (np.diff(same.excess) > 0).all()  # the more noise, the more "misrouting"
    assert misrouting_detection(noise, first, first, chosen, margin=0.2).auroc > 0.7


def test_a_score_that_is_the_true_excess_is_calibrated_where_halves_tell_candidates_apart() -> None:
    generator = np.random.default_rng(2)
    truth = generator.permuted(np.tile(np.arange(CANDIDATES) / CANDIDATES, (TASKS, 1)), axis=1)
    chosen = np.where(generator.random(TASKS) < 0.6, truth.argmin(1), generator.integers(CANDIDATES, size=TASKS))
    excess = truth[np.arange(TASKS), chosen]
    found = misrouting_detection(excess, *halves(truth, 0.02, 3), chosen, margin=0.06)
    np.testing.assert_allclose(found.excess, found.score, atol=4e-3)
    assert found.auroc == 1
    assert found.share == (excess > 0).mean()
    assert found.count.sum() == TASKS


def test_halves_that_cannot_tell_understate_the_excess_and_never_overstate_it() -> None:
    truth = np.tile([0.0, 0.05, 0.1, 0.5], (TASKS, 1))
    found = excess_loss(*halves(truth, 0.3, 4), np.full(TASKS, 3))
    assert 0.3 < found.mean() < 0.5
    first, _ = halves(truth, 0.3, 4)
    assert (first[:, 3] - first.min(1)).mean() > 0.55  # one half: more than the truth of .5


def test_bins_and_auroc_by_another_way() -> None:
    generator = np.random.default_rng(5)
    truth, chosen = generator.random((300, 3)), generator.integers(3, size=300)
    first, second = halves(truth, 0.1, 6)
    scores = generator.integers(4, size=300) + 0.0
    excess = excess_loss(first, second, chosen)
    found = misrouting_detection(torch.tensor(scores), torch.tensor(first), second, chosen, margin=0.1, bins=50)
    assert found.auroc == pytest.approx(roc_auc_score(excess > 0.1, scores))
    assert found.score.tolist() == [0, 1, 2, 3]  # ties stay together
    for value in range(4):
        inside = excess[scores == value]
        assert found.excess[value] == pytest.approx(inside.mean())
        assert found.standard_error[value] == pytest.approx(inside.std(ddof=1) / math.sqrt(len(inside)))


def test_one_task() -> None:
    found = misrouting_detection([0.3], [[0.1, 0.4]], [[0.2, 0.6]], [1])
    assert math.isnan(found.auroc)
    assert math.isnan(found.standard_error[0])
    assert found.excess[0] == pytest.approx(0.35)


def test_bad_input_is_refused() -> None:
    losses = [[0.1, 0.2], [0.3, 0.4]]
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(1, 2\)"):
        excess_loss(losses, losses[:1], [0, 0])
    with pytest.raises(ValueError, match=r"task 1 chose 2; expected an integer in \[0, 2\)"):
        excess_loss(losses, losses, [0, 2])
    with pytest.raises(ValueError, match="losses and chosen have 2 and 3 entries"):
        excess_loss(losses, losses, [0, 0, 0])
    with pytest.raises(ValueError, match="scores and tasks have 1 and 2 entries"):
        misrouting_detection([0.1], losses, losses, [0, 0])
    with pytest.raises(ValueError, match="margin is -1"):
        misrouting_detection([0.1, 0.2], losses, losses, [0, 0], margin=-1)
    with pytest.raises(ValueError, match="bins is 0"):
        misrouting_detection([0.1, 0.2], losses, losses, [0, 0], bins=0)
    with pytest.raises(ValueError, match="hold 1 NaN or infinite"):
        excess_loss(losses, [[0.1, math.inf], [0.3, 0.4]], [0, 0])
