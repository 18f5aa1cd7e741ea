"""Episodes and padded batches against hand-made ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled


def make(
    way: int, shots: list[int], queries: int, seed: int = 0, size: int = 3, support_rows=None, query_rows=None, **extra
):
    generator = torch.Generator().manual_seed(seed)
    support, query = torch.arange(way).repeat_interleave(torch.tensor(shots)), torch.arange(way).repeat(queries)
    return Episode(
        Labelled(torch.rand(len(support), 1, size, size, generator=generator) + 0.01, support, rows=support_rows),
        Labelled(torch.rand(len(query), 1, size, size, generator=generator) + 0.01, query, rows=query_rows),
        way=way,
        **extra,
    )


def test_collate_pads_and_masks():
    first = make(3, [1, 2, 3], 2, route=1, domain=4, corrupted_labels=2, confounded_with=0)
    second = make(2, [1, 1], 5, seed=1, support_rows=torch.tensor([7, 9]), query_rows=torch.arange(20, 30))
    batch = EpisodeBatch.collate([first, second])
    assert batch.support.images.shape == (2, 6, 1, 3, 3)
    assert batch.query.images.shape == (2, 10, 1, 3, 3)
    assert torch.equal(batch.support.images[1, :2], second.support.images)
    assert batch.support.images[1, 2:].abs().sum() == 0
    assert torch.equal(batch.query.images[0, :6], first.query.images)
    assert batch.support.mask.sum(1).tolist() == [6, 2]
    assert batch.query.mask.sum(1).tolist() == [6, 10]
    assert batch.support.labels.tolist() == [[0, 1, 1, 2, 2, 2], [0, 1, 0, 0, 0, 0]]
    assert batch.support.rows.tolist() == [[-1] * 6, [7, 9, -1, -1, -1, -1]]
    assert batch.query.rows[1].tolist() == list(range(20, 30))
    assert (batch.way.tolist(), batch.max_way) == ([3, 2], 3)
    assert batch.class_mask.tolist() == [[True] * 3, [True, True, False]]
    assert (batch.route.tolist(), batch.domain.tolist()) == ([1, -1], [4, -1])
    assert (batch.corrupted_labels.tolist(), batch.confounded_with.tolist()) == ([2, 0], [0, -1])
    assert len(batch) == 2
    assert batch.support.features is None


def test_masked_means_of_a_batch_equal_the_means_of_its_episodes():
    episodes = [make(2, [1, 3], 2, seed=0), make(4, [2, 2, 1, 1], 3, seed=1), make(3, [1, 1, 1], 1, seed=2)]
    batch = EpisodeBatch.collate(episodes)
    sums = (batch.query.images * batch.query.mask[..., None, None, None]).sum((1, 2, 3, 4))
    expected = torch.stack([e.query.images.sum() for e in episodes])
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(batch.query.images.sum((1, 2, 3, 4)), expected)


def test_indexing_by_slices_lists_and_tensors(assert_same):
    episodes = [make(2, [1, 1 + s], 1, seed=s, corruptions=(f"c{s}",), class_names=("a", str(s))) for s in range(4)]
    batch = EpisodeBatch.collate(episodes)
    expected = [episodes[3], episodes[1]]
    for index in ([3, 1], torch.tensor([3, 1]), [-1, -3]):
        part = batch[index]
        assert part.support.mask.sum(1).tolist() == [5, 3]
        assert part.corruptions == (("c3",), ("c1",))
        for i, episode in enumerate(expected):
            assert_same(part.episode(i), episode)
    assert_same(batch[torch.tensor([False, True, False, True])], batch[1::2])
    assert_same(batch[[False, True, False, True]], batch[1::2])
    assert len(batch[:0]) == len(batch[[]]) == 0
    for i, episode in enumerate(episodes):
        assert_same(batch.episode(i), episode)
    assert_same(batch.episode(-1), episodes[-1])
    with pytest.raises(IndexError, match="episode 4 of a batch of 4"):
        batch.episode(4)
    with pytest.raises(IndexError):
        batch[[4]]
    with pytest.raises(IndexError):
        batch[[True, False]]
    with pytest.raises(TypeError, match=r"batch\.episode\(i\) is one episode"):
        batch[2]


def test_what_things_say_of_themselves():
    batch = EpisodeBatch.collate([make(2, [1, 1], 5), make(5, [3] * 5, 2)])
    assert repr(batch) == "EpisodeBatch(2 episodes, 2 to 5-way, 2 to 15 support, 10 query, 1x3x3)"
    assert repr(batch[1:]) == "EpisodeBatch(1 episodes, 5-way, 15 support, 10 query, 1x3x3)"
    assert repr(batch[:0]).startswith("EpisodeBatch(0 episodes")
    assert repr(Episode(make(2, [1, 1], 5).support)) == "Episode(2-way, 2 support, no query, 1x3x3)"
    assert repr(batch.support) == "Labelled(2 x 15 images 1x3x3, labelled)"
    assert repr(batch.with_features(torch.zeros(2, 3, 15, 7)).support).endswith("features (2, 3, 15, 7))")
    assert repr(Labelled(torch.rand(4, 3, 8, 8))) == "Labelled(4 images 3x8x8, no labels)"
    assert "not all labelled" in repr(Labelled(torch.rand(2, 3, 8, 8), torch.tensor([0, -1])))


def test_slices_features_and_devices():
    batch = EpisodeBatch.collate([make(2, [1, 1], 1, seed=s) for s in range(4)])
    part = batch[1:3]
    assert len(part) == 2
    assert torch.equal(part.support.images, batch.support.images[1:3])
    assert part.support.features is None
    features = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    rich = batch.with_features(features)
    assert torch.equal(rich[2:].support.features, features[2:])
    assert batch.support.features is None
    meta = rich.to("meta")
    assert meta.support.features.device.type == meta.way.device.type == "meta"


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: {"support": replace(e.support, images=e.support.images[0])},
            r"support images have shape \(1, 3, 3\); expected \(n, chan",
        ),
        (
            lambda e: {"query": replace(e.query, images=e.query.images[:0])},
            r"query images have shape \(0, 1, 3, 3\).*n > 0",
        ),
        (
            lambda e: {"support": replace(e.support, images=e.support.images.byte())},
            "torch.uint8; expected floating point",
        ),
        (
            lambda e: {"support": replace(e.support, images=_with(e.support.images, 2, NAN))},
            r"support images \[2\] hold NaN or infinite",
        ),
        (
            lambda e: {"query": replace(e.query, images=_with(e.query.images, 3, INFINITE))},
            r"query images \[3\] hold NaN or infinite",
        ),
        (
            lambda e: {"support": replace(e.support, labels=e.support.labels[1:])},
            r"support labels have shape \(2,\); expected \(3,\)",
        ),
        (lambda e: {"query": replace(e.query, labels=e.query.labels.int())}, "query labels are torch.int32"),
        (
            lambda e: {"query": replace(e.query, labels=e.query.labels + 1)},
            r"query labels are torch.int64 from 1 to 2; expected.*\[0, 2\)",
        ),
        (lambda e: {"support": replace(e.support, labels=e.support.labels - 1)}, "from -1 to 0"),
        (
            lambda e: {"query": replace(e.query, images=torch.rand(4, 1, 5, 5))},
            r"support images are \(1, 3, 3\) and query images \(1, 5, 5\)",
        ),
        (lambda e: {"way": 3, "class_names": ("a", "b", "c")}, r"classes \['c'\] have no support image"),
        (lambda e: {"way": 4}, r"classes \['2', '3'\] have no support image; expected at least one for each of 4"),
    ],
)
def test_episode_refusals(change, message):
    episode = make(2, [1, 2], 2)
    with pytest.raises(ValueError, match=message):
        replace(episode, **change(episode))


def test_collate_refusals():
    with pytest.raises(ValueError, match="got no episodes; expected at least one"):
        EpisodeBatch.collate([])
    with pytest.raises(ValueError, match=r"sizes \[\(1, 3, 3\), \(1, 4, 4\)\]; expected one size"):
        EpisodeBatch.collate([make(2, [1, 1], 1), make(2, [1, 1], 1, size=4)])


def _with(images: torch.Tensor, row: int, value: float) -> torch.Tensor:
    images = images.clone()
    images[row, 0, 1, 1] = value
    return images
