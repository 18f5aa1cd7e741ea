"""MetaDatasetSampler: marginal distributions against the published formulas, computed in another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from pyro_smat.episodes import EpisodeSettings
from pyro_smat.episodes.meta_dataset import MetaDatasetSampler, support_and_queries
from pyro_smat.episodes.pool import ImagePool

SIZES = [2, 7, 13, 40, 21, 30, 64, 19]


def pool_of(sizes: list[int], domains: int = 1) -> ImagePool:
    """Classes of so many images, no two alike, in each of some domains."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).repeat(domains)
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers % 256, numbers // 256], 1).to(torch.uint8)
    return ImagePool(
        images.view(-1, 1, 2, 1),
        labels[:, None],
        ("class",),
        (tuple(f"c{k}" for k in range(len(sizes))),),
        torch.arange(domains).repeat_interleave(sum(sizes)),
        tuple(f"d{k}" for k in range(domains)),
    )


def test_every_episode_obeys_the_rules() -> None:
    pool = pool_of(SIZES)
    batch = MetaDatasetSampler(pool, (3, 50), seed=3).sample(200)
    for b in range(200):
        named = [int(name[1:]) for name in batch.class_names[b]]
        way = len(named)
        assert len(set(named)) == way
        sizes = np.array([SIZES[k] for k in named])
        support = batch.support.labels[b][batch.support.mask[b]]
        query = batch.query.labels[b][batch.query.mask[b]]
        shots, queries = (np.bincount(x.numpy(), minlength=way) for x in (support, query))
        assert (queries == min(10, int(sizes.min()) // 2)).all()
        assert (shots >= 1).all()
        assert (shots + queries <= sizes).all()
        rows = batch.support.rows[b][batch.support.mask[b]].tolist() + batch.query.rows[b][batch.query.mask[b]].tolist()
        assert len(set(rows)) == len(rows)
        truth = pool.labels[torch.tensor(rows), 0].tolist()
        assert truth == [named[k] for k in torch.cat([support, query]).tolist()]


def test_the_way_is_uniform_up_to_what_a_domain_has() -> None:
    batch = MetaDatasetSampler(pool_of(SIZES, domains=2), (3, 50), seed=0).sample(2000)
    ways = np.bincount([len(names) for names in batch.class_names], minlength=9)[3:]
    assert ways.sum() == 2000
    assert stats.chisquare(ways).pvalue > 1e-3
    assert stats.chisquare(np.bincount(batch.domain.numpy())).pvalue > 1e-3
    assert stats.chisquare(np.bincount([int(n[1:]) for names in batch.class_names for n in names])).pvalue > 1e-3


def test_the_size_of_the_support_has_the_published_distribution() -> None:
    # Classes so large that no class is exhausted and few enough not to reach 500: |S| = way * ceil(beta * 100), so that
    # ceil(|S| / way) is uniform on 1..100; floors lose less than one image a class.
    rng = np.random.default_rng(1)
    totals = np.array([support_and_queries([10_000] * 4, rng)[0].sum() for _ in range(4000)])
    assert (totals <= 400).all()
    assert stats.chisquare(np.bincount(np.ceil(totals / 4).astype(int), minlength=101)[1:]).pvalue > 1e-3
    capped = [support_and_queries([10_000] * 50, rng)[0].sum() for _ in range(300)]
    assert max(capped) <= 500
    assert np.mean(np.array(capped) > 450) == pytest.approx(0.9, abs=0.06)  # beta above 0.1


def test_shots_follow_the_size_of_a_class_and_a_log_uniform_weight() -> None:
    # With two classes R_1 / R_2 = (|c_1| / |c_2|) exp(alpha_1 - alpha_2), and alpha_1 - alpha_2 is triangular on
    # (-log 4, log 4). Large supports make the floors negligible.
    rng = np.random.default_rng(2)
    drawn = [support_and_queries([600_000, 200_000], rng, most_support=10**9)[0] for _ in range(20_000)]
    shots = np.array([s for s in drawn if s.sum() > 150])
    logs = np.log((shots[:, 0] - 0.5) / (shots[:, 1] - 0.5) / 3)
    width = math.log(4)
    expected = stats.triang(0.5, -width, 2 * width)
    assert abs(logs.mean()) < 0.02
    assert logs.std() == pytest.approx(expected.std(), abs=0.02)
    for q in (0.1, 0.25, 0.75, 0.9):
        assert np.quantile(logs, q) == pytest.approx(expected.ppf(q), abs=0.04)


def test_a_seed_is_a_stream() -> None:
    pool = pool_of(SIZES)
    whole = MetaDatasetSampler(pool, (3, 50), seed=5).sample(5)
    parts = MetaDatasetSampler(pool, (3, 50), seed=5)
    first, second = parts.sample(2), parts.sample(3)
    assert whole.class_names == first.class_names + second.class_names


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 2 classes with at least 2 images in the pool; expected 5 for way 5"):
        MetaDatasetSampler(pool_of([3, 1, 4]))
    with pytest.raises(ValueError, match=r"class 'c1' has 1.*skip_small_classes=True"):
        MetaDatasetSampler(pool_of([3, 1, 4]), (2, 8))
    with pytest.raises(ValueError, match=r"corruptions \['class_imbalance'\] change counts"):
        MetaDatasetSampler(pool_of(SIZES), (3, 8), corruptions=["class_imbalance"])
    with pytest.raises(ValueError, match="most_support 3"):
        MetaDatasetSampler(pool_of(SIZES), (3, 8), most_support=3)
    with pytest.raises(ValueError, match="count is 0"):
        MetaDatasetSampler(pool_of(SIZES), (3, 8)).sample(0)


def published(sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Shots and queries by the paper's formulas, a class at a time, with the repository's floor for the ceiling."""
    query = min(10, min(size // 2 for size in sizes))
    beta = rng.uniform()
    total = min(500, sum(math.floor(beta * min(100, size - query)) + 1 for size in sizes))
    weights = [size * math.exp(rng.uniform(math.log(0.5), math.log(2))) for size in sizes]
    shares = [weight / sum(weights) for weight in weights]
    shots = [
        min(math.floor(share * (total - len(sizes))) + 1, size - query)
        for share, size in zip(shares, sizes, strict=True)
    ]
    return np.array(shots), query


@pytest.mark.parametrize("sizes", [[20] * 20, [12, 30, 700, 80, 55], [1300] * 50])
def test_the_law_is_that_of_the_published_sampler(sizes: list[int]) -> None:
    theirs, ours = np.random.default_rng(0), np.random.default_rng(1)
    expected = [published(np.array(sizes), theirs) for _ in range(4000)]
    found = [support_and_queries(sizes, ours) for _ in range(4000)]
    assert {q for _, q in expected} == {int(q) for _, queries in found for q in queries}
    for k in (0, len(sizes) // 2, -1):
        one = stats.ks_2samp([shots[k] for shots, _ in expected], [shots[k] for shots, _ in found])
        assert one.pvalue > 1e-3
    totals = stats.ks_2samp([shots.sum() for shots, _ in expected], [shots.sum() for shots, _ in found])
    assert totals.pvalue > 1e-3


def grouped_pool() -> ImagePool:
    """24 classes of 6 images in alphabets of 8, 12 and 4 characters."""
    alphabet = torch.tensor([0] * 8 + [1] * 12 + [2] * 4)
    labels = torch.stack([torch.arange(24), alphabet], 1).repeat_interleave(6, 0)
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers % 256, numbers // 256], 1).to(torch.uint8).view(-1, 1, 2, 1)
    names = tuple(f"c{k}" for k in range(24)), ("a", "b", "c")
    return ImagePool(images, labels, ("class", "alphabet"), names, torch.zeros(len(labels), dtype=torch.long))


def test_all_classes_of_an_episode_are_of_one_alphabet() -> None:
    sampler = MetaDatasetSampler(grouped_pool(), (5, 50), within="alphabet", attributes=["class"], seed=2)
    drawn = [[int(name[1:]) for name in names] for names in sampler.sample(1500).class_names]
    first, second = ([ks for ks in drawn if inside(ks)] for inside in (_all_below(8), _all_between(8, 20)))
    assert len(first) + len(second) == 1500  # the third has too few characters
    assert stats.binomtest(len(first), 1500).pvalue > 1e-3  # alphabets uniformly, not by their characters
    for ks, most in ((first, 8), (second, 12)):
        assert stats.chisquare(np.bincount([len(k) for k in ks], minlength=most + 1)[5:]).pvalue > 1e-3
    crossed = replace_alphabets(grouped_pool())
    with pytest.raises(ValueError, match=r"class 'c0' has images of 2 values of 'alphabet'"):
        MetaDatasetSampler(crossed, within="alphabet", attributes=["class"])
    with pytest.raises(ValueError, match=r"no value of 'alphabet' has 13 classes"):
        MetaDatasetSampler(grouped_pool(), (13, 20), within="alphabet", attributes=["class"])


def _all_below(end: int) -> Callable[[list[int]], bool]:
    return lambda ks: max(ks) < end


def _all_between(start: int, end: int) -> Callable[[list[int]], bool]:
    return lambda ks: min(ks) >= start and max(ks) < end


def replace_alphabets(pool: ImagePool) -> ImagePool:
    labels = pool.labels.clone()
    labels[0, 1] = 1
    return replace(pool, labels=labels)


def test_what_goes_wrong_with_labels_and_pixels_goes_wrong_here_too() -> None:
    noise = {"kind": "label_noise", "fraction": 0.5}
    wrong = MetaDatasetSampler(pool_of(SIZES), (3, 8), corruptions=[noise], seed=4)
    batch = wrong.sample(20)
    assert (batch.corrupted_labels > 0).any()
    clean = wrong.with_corruptions(())
    assert not clean.sample(20).corrupted_labels.any()
    assert clean.way == (3, 8)
    numbered = [wrong.at(i).class_names for i in (3, 1, 2)]
    assert [wrong.at(i).class_names for i in (2, 1, 3)] == numbered[::-1][:1] + numbered[1:2] + numbered[:1]
    state = wrong.state_dict()
    following = wrong.sample(3).class_names
    wrong.load_state_dict(state)
    assert wrong.sample(3).class_names == following


def test_a_config_can_ask_for_it() -> None:
    settings = EpisodeSettings.model_validate({"kind": "meta_dataset", "way": [3, 6]})
    pool = pool_of(SIZES)
    made = settings.sampler(pool, seed=5)
    assert isinstance(made, MetaDatasetSampler)
    assert made.sample(6).class_names == MetaDatasetSampler(pool, (3, 6), seed=5).sample(6).class_names
    assert EpisodeSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert (settings.most_images, str(settings)) == (560, "(3, 6), as Meta-Dataset draws them")
    assert EpisodeSettings.model_validate({"kind": "meta_dataset"}).way == (5, 50)
    batch = settings.uniform(shot=1, query=1).sampler(pool, seed=5).sample(2)
    assert (batch.way == 3).all()
    assert (batch.support.counts == 3).all()
    within = EpisodeSettings(kind="meta_dataset", within="alphabet", attributes=("class",))
    assert len(within.sampler(grouped_pool(), seed=0).sample(2)) == 2
    for wrong in ({"kind": "meta_dataset", "shot": 3}, {"within": "alphabet"}, {"kind": "omniglot"}):
        with pytest.raises(ValidationError, match=r"draws shot itself|within is for kind|Input should be"):
            EpisodeSettings.model_validate(wrong)
