"""Identical pictures: reported by the pool, and never in support and query of one episode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_smat.episodes import EpisodeSampler, ImagePool

WRONG = ("outliers", "missing_class", "confounding", "support_query_mismatch", "label_noise", "missing_shots")


def pool_of(pictures: list[int], labels: list[list[int]], domains: list[int]) -> ImagePool:
    """Images that show their number; labels of two attributes."""
    numbers = torch.tensor(pictures)
    return ImagePool(
        torch.stack([numbers % 256, numbers // 256], 1).to(torch.uint8).view(-1, 1, 1, 2),
        torch.tensor(labels),
        ("shape", "colour"),
        tuple(tuple(f"{a}{k}" for k in range(8)) for a in "sc"),
        torch.tensor(domains),
        ("day", "night")[: max(domains) + 1],
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    wrong=st.lists(st.sampled_from(WRONG), unique=True, max_size=3),
    shot=st.integers(2, 3),
    copies=st.integers(0, 40),
)
def test_no_picture_is_in_support_and_query(seed, wrong, shot, copies):
    generator = torch.Generator().manual_seed(seed % 1000)
    cells = [(s, c, d) for s in range(6) for c in range(6) for d in range(2) for _ in range(4)]
    pictures = torch.arange(len(cells))
    if copies:  # under any label, in any domain
        pictures[torch.randint(len(cells), (copies,), generator=generator)] = torch.randint(
            len(cells), (copies,), generator=generator
        )
    pool = pool_of(pictures.tolist(), [[s, c] for s, c, _ in cells], [d for *_, d in cells])
    sampler = EpisodeSampler(pool, 3, shot, 4, corruptions=wrong, seed=seed)
    for _ in range(10):
        e = sampler.episode()
        assert not set(e.support.rows.tolist()) & set(e.query.rows.tolist())
        assert len(set(e.query.rows.tolist())) == len(e.query)
        assert not set(pictures[e.support.rows].tolist()) & set(pictures[e.query.rows].tolist())
        truth = pool.labels[e.query.rows, e.route]
        assert [e.class_names[k] for k in e.query.labels] == [pool.class_names[e.route][k] for k in truth]
        assert set(e.support.labels.tolist()) == set(range(3))


def test_the_pool_names_them(crossed_pool):
    assert crossed_pool.duplicates() == []
    assert crossed_pool.pictures is None
    pool = pool_of([5, 7, 5, 300, 7, 5, 8], [[0, 0]] * 7, [0] * 7)
    assert pool.duplicates() == [[0, 2, 5], [1, 4]]


def test_without_care_they_meet():
    pictures = [n // 2 for n in range(64)]
    pool = pool_of(pictures, [[n // 16, 0] for n in range(64)], [0] * 64)
    options = {"attributes": ["shape"], "seed": 0}

    def meet(**more):
        sampler = EpisodeSampler(pool, 3, 4, 4, **options, **more)
        batch = [sampler.episode() for _ in range(50)]
        return sum(
            bool({r // 2 for r in e.support.rows.tolist()} & {r // 2 for r in e.query.rows.tolist()}) for e in batch
        )

    assert meet() == 0
    assert meet(identical_apart=False) > 40


def test_copies_do_not_count_as_images():
    """Four shots can take eight of a class's images away: ten are not enough for four shots and four queries."""
    pool = pool_of([n // 2 for n in range(30)], [[n // 10, 0] for n in range(30)], [0] * 30)
    with pytest.raises(ValueError, match=r"'shape' has 0 classes with at least 8 images .*'s0' has 6"):
        EpisodeSampler(pool, 3, 4, 4, attributes=["shape"])
    EpisodeSampler(pool, 3, 4, 4, attributes=["shape"], identical_apart=False).sample(3)
    EpisodeSampler(pool, 3, 4, 2, attributes=["shape"]).sample(20)


def test_one_picture_under_every_label_is_refused():
    """Every class has the same five pictures: after the shots of the others, nothing is left to ask."""
    pool = pool_of([n % 5 for n in range(15)], [[n // 5, 0] for n in range(15)], [0] * 15)
    with pytest.raises(ValueError, match="too few pictures that are not in the support of the same episode"):
        EpisodeSampler(pool, 3, 3, 2, attributes=["shape"]).sample(20)


def test_images_on_a_device_and_what_does_not_fit() -> None:
    """The meta device stands for one that is not the CPU: it keeps shapes and loses pixels."""
    images = torch.arange(4, dtype=torch.uint8).repeat_interleave(64).view(4, 1, 8, 8)
    images[3] = images[1]
    pool = ImagePool(images, torch.tensor([[0], [0], [1], [1]]), ("class",), (("a", "b"),), torch.zeros(4).long())
    there = pool.on("meta")
    assert there.images.is_meta
    assert there.labels.device.type == "cpu"
    assert there.duplicates() == pool.duplicates() == [[1, 3]]  # known before the pixels were gone
    assert pool.on("cpu") is pool
    assert pool.on("meta", limit=100) is pool
