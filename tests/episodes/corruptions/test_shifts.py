"""Supports and queries that differ: in their domain, in how frequent the classes are."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions.label_shift import LabelShift
from pyro_smat.episodes.corruptions.support_query_mismatch import SupportQueryMismatch


def test_supports_come_from_another_domain_with_true_labels(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 4, 3, 5, corruptions=[SupportQueryMismatch(probability=0.5)], seed=0)
    moved = 0
    for _ in range(200):
        e = sampler.episode()
        assert (crossed_pool.domain[e.query.rows] == e.domain).all()
        other = crossed_pool.domain[e.support.rows] != e.domain
        assert other.all() == other.any() == ("support_query_mismatch" in e.corruptions)
        moved += int(other.all())
        names = [crossed_pool.class_names[e.route][k] for k in crossed_pool.labels[e.support.rows, e.route]]
        assert names == [e.class_names[k] for k in e.support.labels]
        assert (e.corrupted_labels, e.confounded_with) == (0, -1)
    assert abs(moved - 100) < 5 * 50**0.5


def test_domains_must_share_classes(make_pool):
    pool = make_pool({"x": {n: 20 for n in "abcdef"}, "y": {n: 20 for n in "defghi"}})
    with pytest.raises(ValueError, match="in domain 'x' shares at most 3 classes with another domain; expected 4"):
        EpisodeSampler(pool, 4, corruptions=["support_query_mismatch"])
    batch = EpisodeSampler(pool, 3, 2, 2, corruptions=["support_query_mismatch"]).sample(10)
    assert {n for names in batch.class_names for n in names} == set("def")


def test_label_shift_spreads_the_queries_and_keeps_one(crossed_pool):
    sampler = EpisodeSampler(crossed_pool, 5, 2, 4, corruptions=[LabelShift(0.75)], seed=0)
    drawn = [sampler.episode() for _ in range(300)]
    counts = torch.cat([e.query.labels.bincount() for e in drawn])
    assert set(counts.tolist()) == set(range(1, 8))  # round(4 u), u in [.25, 1.75]
    assert counts.float().mean() == pytest.approx(4, abs=0.2)
    assert all((e.support.labels.bincount() == 2).all() for e in drawn)
    with pytest.raises(ValueError, match=r"shift is 1; expected a number in \[0, 1\)"):
        LabelShift(1)


def test_label_shift_asks_for_the_images_that_it_may_need(make_pool):
    pool = make_pool({n: 10 for n in "abc"})
    with pytest.raises(ValueError, match="at least 11 images"):
        EpisodeSampler(pool, 3, 2, 6, corruptions=[LabelShift(0.5)])
    EpisodeSampler(pool, 3, 1, 6, corruptions=[LabelShift(0.5)]).sample(20)
