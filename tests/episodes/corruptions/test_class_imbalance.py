"""Class imbalance against counting by hand."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions.class_imbalance import ClassImbalance


def test_imbalance_spreads_the_shots_and_keeps_one(crossed_pool):
    shots = torch.cat(
        [
            EpisodeSampler(crossed_pool, 5, 4, 3, corruptions=[ClassImbalance(0.75)], seed=s)
            .episode()
            .support.labels.bincount()
            for s in range(300)
        ]
    )
    assert set(shots.tolist()) == set(range(1, 8))  # round(4 u), u in [.25, 1.75]
    assert shots.float().mean() == pytest.approx(4, abs=0.2)
    smallest = EpisodeSampler(crossed_pool, 5, 1, 3, corruptions=[ClassImbalance(0.9)], seed=0).sample(50)
    assert smallest.support.mask.sum() >= 250


def test_an_imbalance_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"imbalance is 1.0; expected a number in \[0, 1\)"):
        ClassImbalance(1.0)
    with pytest.raises(ValueError, match=r"imbalance is -0\.5"):
        ClassImbalance(-0.5)


def test_none_changes_nothing(crossed_pool, assert_same):
    clean = EpisodeSampler(crossed_pool, seed=4).sample(6)
    assert_same(EpisodeSampler(crossed_pool, corruptions=[ClassImbalance(0.0)], seed=4).sample(6), clean)
