"""What all corruptions share: names, tables, severities, and episodes that stay as they are where nothing was done."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions import Corruption, PixelCorruption, RowCorruption, at_severity, make_corruptions
from pyro_smat.episodes.corruptions.jpeg import Jpeg
from pyro_smat.registry import choose, find, names

EVERY = names("corruption")
PIXELS = ("gaussian_blur", "gaussian_noise", "jpeg", "spurious_mark")


def test_the_house_has_these():
    assert set(EVERY) >= {"class_imbalance", "confounding", "label_noise", "outliers", "swapped_class", *PIXELS}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("severity", [1, 5])
def test_every_corruption_at_every_severity(crossed_pool, decode, name, severity):
    """Batches keep their form, queries are honest, and what is recorded is what happened."""
    sampler = EpisodeSampler(crossed_pool, 4, 4, 3, corruptions=[at_severity(name, severity)], seed=1)
    clean = EpisodeSampler(crossed_pool, 4, 4, 3, seed=1).sample(40)
    batch = sampler.sample(40)
    assert set(batch.corruptions) <= {(), (name,)}
    assert (name,) in batch.corruptions
    for b, names_ in enumerate(batch.corruptions):
        e = batch.episode(b)  # an Episode checks labels and images
        truth = [crossed_pool.class_names[e.route][k] for k in crossed_pool.labels[e.query.rows, e.route]]
        assert truth == [e.class_names[k] for k in e.query.labels]
        assert torch.equal(decode(e.query.images), e.query.rows)
        if not names_:
            assert e.corrupted_labels == 0
    if name in PIXELS:
        assert (batch.support.rows == -1).all()
        assert not torch.equal(batch.support.images, clean.support.images)
        assert torch.equal(batch.support.labels, clean.support.labels)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_change_more_with_severity_and_in_queries_on_request(pictures, name):
    def distances(**options):
        wrong = EpisodeSampler(pictures, 4, 3, 3, corruptions=[at_severity(name, **options)], seed=2).at(range(4))
        clean = EpisodeSampler(pictures, 4, 3, 3, seed=2).at(range(4))
        return [(getattr(wrong, p).images - getattr(clean, p).images).square().mean() for p in ("support", "query")]

    support = [distances(severity=s)[0] for s in (1, 2, 3, 4, 5)]
    assert all(a < b for a, b in pairwise(support))
    assert distances(severity=3)[1] == 0
    assert distances(severity=3, queries=True)[1] > 0


def test_probability_is_a_share_of_the_episodes(pictures):
    wrong = EpisodeSampler(pictures, 3, 2, 2, corruptions=[Jpeg(probability=0.3)], seed=0).sample(300)
    changed = (wrong.support.rows == -1).all(1)
    assert abs(int(changed.sum()) - 90) < 5 * 63**0.5
    assert changed.tolist() == [names_ == ("jpeg",) for names_ in wrong.corruptions]


@pytest.mark.parametrize("name", [n for n in EVERY if issubclass(find("corruption", n), RowCorruption)] + [*PIXELS])
def test_a_numbered_episode_has_the_queries_of_the_clean_one(crossed_pool, assert_same, name):
    """What is done to supports is drawn last, so that clean and corrupted episodes can be compared in pairs."""
    wrong = EpisodeSampler(crossed_pool, 4, 4, 3, corruptions=[name], seed=1).at(range(10))
    clean = EpisodeSampler(crossed_pool, 4, 4, 3, seed=1).at(range(10))
    assert_same(wrong.query, clean.query)
    assert wrong.class_names == clean.class_names


def test_padding_stays_zero(pictures):
    batch = EpisodeSampler(pictures, (2, 5), (1, 4), 2, corruptions=["gaussian_noise"], seed=0).sample(12)
    assert batch.support.images[~batch.support.mask].abs().sum() == 0
    assert batch.support.images.min() >= 0
    assert batch.support.images.max() <= 1


def test_names_tables_choices_and_objects_are_the_same():
    table = {"kind": "jpeg", "severity": 2}
    assert make_corruptions([table, choose("corruption", table), Jpeg(2)]) == (Jpeg(2),) * 3
    with pytest.raises(ValueError, match="expected a list of corruptions"):
        make_corruptions(table)


def test_a_class_of_ones_own(tmp_path, pictures):
    @dataclass(frozen=True)
    class Inverted(PixelCorruption):
        def change(self, images, labels, way, rng, *, query):
            return 1 - images

    clean = EpisodeSampler(pictures, 3, 2, 2, seed=0).at(range(2))
    batch = EpisodeSampler(pictures, 3, 2, 2, corruptions=[Inverted()], seed=0).at(range(2))
    torch.testing.assert_close(batch.support.images, 1 - clean.support.images)
    assert batch.corruptions == (("Inverted",),) * 2
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from pyro_smat.episodes.corruptions import PixelCorruption\n"
        "@dataclass(frozen=True)\n"
        "class Darker(PixelCorruption):\n"
        "    factor: float = 0.5\n"
        "    def change(self, images, labels, way, rng, *, query):\n"
        "        return self.factor * images\n"
    )
    table = {"kind": f"{tmp_path}/mine.py:Darker", "factor": 0.25}
    batch = EpisodeSampler(pictures, 3, 2, 2, corruptions=[table], seed=0).at(range(2))
    torch.testing.assert_close(batch.support.images, clean.support.images / 4)


def test_severities_out_of_range():
    with pytest.raises(ValueError, match="severity of jpeg is 0; expected one of 1, 2, 3, 4, 5"):
        at_severity("jpeg", 0)
    with pytest.raises(ValueError, match="severity of jpeg is 6"):
        Jpeg(6)
    with pytest.raises(ValueError, match="there is no corruption 'jpg'; did you mean 'jpeg'"):
        at_severity("jpg", 1)


def test_a_certain_corruption_draws_nothing_to_decide():
    class Untouched:
        def random(self):
            raise AssertionError

    assert Jpeg().applies(Untouched())
    assert not Jpeg(probability=0.0).applies(np.random.default_rng(0))
    assert isinstance(Jpeg(), Corruption)
