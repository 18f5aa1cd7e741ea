"""Swapped and missing classes, outliers and missing shots, each counted by hand from the rows of the pool."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions.missing_class import MissingClass
from pyro_smat.episodes.corruptions.missing_shots import MissingShots
from pyro_smat.episodes.corruptions.outliers import Outliers
from pyro_smat.episodes.corruptions.swapped_class import SwappedClass


def truth(pool, e):
    """The label that every support should have, -1 for none."""
    names = [pool.class_names[e.route][k] for k in pool.labels[e.support.rows, e.route].tolist()]
    return torch.tensor([e.class_names.index(n) if n in e.class_names else -1 for n in names])


def episodes(pool, corruption, count=60, way=4, shot=3, **options):
    sampler = EpisodeSampler(pool, way, shot, 2, corruptions=[corruption], seed=5, **options)
    return [sampler.episode() for _ in range(count)]


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_classes_trade_all_their_labels(crossed_pool, classes):
    for e in episodes(crossed_pool, SwappedClass(classes)):
        true = truth(crossed_pool, e)
        moves = {(a, b) for a, b in zip(true.tolist(), e.support.labels.tolist(), strict=True) if a != b}
        moved = min(classes, 4)
        assert len(moves) == len({a for a, _ in moves}) == len({b for _, b in moves}) == moved
        assert e.corrupted_labels == 3 * moved == int((true != e.support.labels).sum())


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_missing_classes_show_classes_that_are_not_in_the_episode(crossed_pool, classes):
    for e in episodes(crossed_pool, MissingClass(classes)):
        true = truth(crossed_pool, e)
        gone = min(classes, 3, len(crossed_pool.class_names[e.route]) - 4)
        assert int((true == -1).sum()) == e.corrupted_labels == 3 * gone
        labels = e.support.labels[true == -1]
        assert len(labels.unique()) == gone
        for label in labels.unique():
            assert len(crossed_pool.labels[e.support.rows[e.support.labels == label], e.route].unique()) == 1
        domains = crossed_pool.domain[e.support.rows]
        assert (domains == e.domain).all()


def test_outliers_of_other_classes(crossed_pool):
    for e in episodes(crossed_pool, Outliers(0.4)):
        true = truth(crossed_pool, e)
        assert int((true == -1).sum()) == e.corrupted_labels == 5  # round(.4 * 12)
        assert ((true == e.support.labels) | (true == -1)).all()
        assert set(true[true >= 0].tolist()) == set(range(4))
        assert (crossed_pool.domain[e.support.rows] == e.domain).all()
        assert len(set(e.support.rows.tolist())) == 12


def test_outliers_of_other_domains(crossed_pool):
    agree = 0
    for e in episodes(crossed_pool, Outliers(0.4, of="domain"), count=150):
        foreign = crossed_pool.domain[e.support.rows] != e.domain
        assert int(foreign.sum()) == 5
        assert (crossed_pool.domain[e.query.rows] == e.domain).all()
        true = truth(crossed_pool, e)
        assert e.corrupted_labels == int((true != e.support.labels).sum())
        assert (true == e.support.labels)[~foreign].all()
        agree += int((true == e.support.labels)[foreign].sum())
    assert 0.08 < agree / 750 < 0.25  # any of 6 to 8 classes


def test_missing_shots_leave_one_of_each(crossed_pool):
    for fraction, left in ((0.0, 12), (0.5, 6), (1.0, 4)):
        for e in episodes(crossed_pool, MissingShots(fraction), count=20):
            assert len(e.support) == left
            assert e.corrupted_labels == 0
            assert torch.equal(truth(crossed_pool, e), e.support.labels)
            assert set(e.support.labels.tolist()) == set(range(4))


def test_what_cannot_be(make_pool, crossed_pool):
    pool = make_pool({n: 20 for n in "abcde"})
    with pytest.raises(ValueError, match="attribute 'class' in domain 'all' has 5 classes for 5-way episodes"):
        EpisodeSampler(pool, 5, corruptions=["outliers"])
    with pytest.raises(ValueError, match="need a class that the episode has not"):
        EpisodeSampler(pool, 5, corruptions=["missing_class"])
    with pytest.raises(ValueError, match="outliers of other domains need two domains"):
        EpisodeSampler(pool, 4, corruptions=[Outliers(of="domain")])
    with pytest.raises(ValueError, match="outliers of other domains need two domains"):
        EpisodeSampler(crossed_pool, 4, corruptions=[Outliers(of="domain")], mix_domains=True)
    for make, message in (
        (lambda: SwappedClass(1), "classes of swapped_class is 1; expected at least 2"),
        (lambda: MissingClass(0), "classes of missing_class is 0; expected at least 1"),
        (lambda: MissingShots(1.5), r"fraction of missing_shots is 1\.5"),
        (lambda: Outliers(1.0), r"fraction of outliers is 1\.0; expected a number in \[0, 1\)"),
        (lambda: Outliers(of="planet"), "of is 'planet'; expected 'class' or 'domain'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
