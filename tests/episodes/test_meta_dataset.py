"""MetaDatasetSampler: marginal distributions against the published formulas, computed in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

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
    with pytest.raises(ValueError, match=r"domain 'd0' has 2 classes of at least two images; expected 5"):
        MetaDatasetSampler(pool_of([3, 1, 4]))
    with pytest.raises(ValueError, match="most_support 3"):
        MetaDatasetSampler(pool_of(SIZES), (3, 8), most_support=3)
    with pytest.raises(ValueError, match="count is 0"):
        MetaDatasetSampler(pool_of(SIZES), (3, 8)).sample(0)
