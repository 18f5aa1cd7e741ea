"""Label noise against counting by hand."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions.label_noise import LabelNoise


@pytest.mark.parametrize(("fraction", "shot", "expected"), [(0.4, 5, 10), (0.2, 5, 5), (0.1, 5, 3), (0.3, 2, 3)])
def test_label_noise_counts_are_exact(crossed_pool, fraction, shot, expected):
    sampler = EpisodeSampler(crossed_pool, 5, shot, 5, corruptions=[LabelNoise(fraction)], seed=1)
    for _ in range(100):
        e = sampler.episode()
        names = crossed_pool.class_names[e.route]
        truth = torch.tensor([e.class_names.index(names[k]) for k in crossed_pool.labels[e.support.rows, e.route]])
        wrong = truth != e.support.labels
        assert int(wrong.sum()) == e.corrupted_labels == expected
        assert set(truth[~wrong].tolist()) == set(range(5))  # every class keeps a true shot


def test_label_noise_is_uniform_over_shots_and_other_labels(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 3, 4, 1, attributes=["shape"], corruptions=[LabelNoise(0.5)], seed=1)
    moves = torch.zeros(3, 3)
    hit = torch.zeros(12)
    for _ in range(1500):
        e = sampler.episode()
        truth = torch.arange(3).repeat_interleave(4)
        for t, k in zip(truth.tolist(), e.support.labels.tolist(), strict=True):
            moves[t, k] += 1
        hit += truth != e.support.labels
    off = moves[~torch.eye(3, dtype=torch.bool)]
    assert ((off - 1500).abs() < 5 * 1500**0.5).all()  # 6 of 12 labels replaced, 6 kinds of move
    assert ((hit - 750).abs() < 5 * 375**0.5).all()


def test_label_noise_probability_and_range(crossed_pool):
    corruption = LabelNoise((0.2, 0.4), probability=0.5)
    counts = EpisodeSampler(crossed_pool, 5, 5, 5, corruptions=[corruption], seed=0).sample(1000).corrupted_labels
    assert abs(int((counts > 0).sum()) - 500) < 5 * 250**0.5
    assert set(counts.tolist()) == {0, 5, 6, 7, 8, 9, 10}


def test_one_shot_episodes_of_a_range_stay_clean(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 5, (1, 4), 5, corruptions=[LabelNoise(0.4)], seed=0)
    for _ in range(60):
        e = sampler.episode()
        assert e.corrupted_labels == {5: 0, 10: 4, 15: 6, 20: 8}[len(e.support.labels)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, "fraction of label_noise is 1.0; expected 0 <= low <= high < 1"),
        ({"fraction": -0.1}, "fraction of label_noise is -0.1"),
        ({"fraction": (0.5, 0.2)}, r"fraction of label_noise is \(0.5, 0.2\)"),
        ({"fraction": (0.5,)}, "expected a number or a pair"),
        ({"fraction": float("nan")}, "fraction of label_noise is nan"),
        ({"probability": 1.1}, r"probability of label_noise is 1.1; expected a probability in \[0, 1\]"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        LabelNoise(**options)


def test_noise_of_nothing_changes_nothing(crossed_pool, assert_same):
    clean = EpisodeSampler(crossed_pool, seed=4).sample(6)
    assert_same(EpisodeSampler(crossed_pool, corruptions=[LabelNoise(0.0)], seed=4).sample(6), clean)


def test_it_says_what_it_does():
    assert str(LabelNoise(0.4)) == "label noise 0.4"
    assert str(LabelNoise((0.0, 0.5), probability=0.25)) == "label noise 0 to 0.5 in 25% of the episodes"
