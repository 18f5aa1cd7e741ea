"""SourceFeatures: the cache against direct computation, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks import features as module_under_test
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace

SOURCES = 3


def networks() -> list[nn.Module]:
    made = []
    for seed in range(SOURCES):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval())
    return made


def pool(count: int = 23) -> ImagePool:
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count).remainder(3).unsqueeze(1)
    return ImagePool(images, labels, ("class",), (("a", "b", "c"),), torch.zeros(count, dtype=torch.long))


class CountingNetwork(TaskNetwork):
    """Counts the images that go through."""

    seen = 0

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        self.seen += x.shape[len(theta.shape) - 1]
        return super().__call__(theta, x)


def world(with_pool: bool = True) -> tuple[SourceFeatures, CountingNetwork, list[nn.Module], ImagePool]:
    modules, images = networks(), pool()
    space = ParameterSpace.from_module(modules[0])
    network = CountingNetwork(modules[0], space)
    basis = torch.stack([space.flatten(m.state_dict()) for m in modules]).requires_grad_()
    return SourceFeatures(network, basis, images if with_pool else None), network, modules, images


def batch_from(images: ImagePool, with_index: bool = True) -> EpisodeBatch:
    """Two episodes of 4 and 3 shots, so one padded row."""
    episodes = []
    for support, query in (([3, 22, 7, 0], [1, 2]), ([5, 6, 3], [9])):
        s, q = torch.tensor(support), torch.tensor(query)
        episodes.append(
            Episode(
                Labelled(images.at(s), torch.arange(len(s)).remainder(2), rows=s if with_index else None),
                Labelled(images.at(q), torch.zeros(len(q), dtype=torch.long), rows=q if with_index else None),
            )
        )
    return EpisodeBatch.collate(episodes)


@pytest.mark.parametrize("with_pool", [True, False])
def test_features_are_those_of_the_plain_modules(with_pool: bool) -> None:
    features, _, modules, images = world(with_pool)
    batch = features.attach(batch_from(images))
    found = batch.support.features
    assert found is not None
    assert found.shape == (2, SOURCES, 4, 5)
    assert not found.requires_grad
    with torch.no_grad():
        for b in range(2):
            for r, module in enumerate(modules):
                expected = module(batch.support.images[b][batch.support.mask[b]])
                torch.testing.assert_close(found[b, r][batch.support.mask[b]], expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(found).all()  # the padded row too


def test_the_pool_is_embedded_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "BATCH_IMAGES", 5)  # 23 images: the last part is smaller
    features, network, modules, images = world()
    assert network.seen == 0
    batch = batch_from(images)
    first = features.attach(batch).support.features
    assert network.seen == SOURCES * len(images)
    again = features.of(batch.query.images, batch.query.rows)
    assert torch.equal(features.attach(batch).support.features, first)  # type: ignore[arg-type]
    assert network.seen == SOURCES * len(images)
    with torch.no_grad():
        everything = torch.stack([m(images.at(torch.arange(23))) for m in modules])
    looked_up = features.of(torch.zeros(1, 23, 1, 8, 8), torch.arange(23).unsqueeze(0))[0]
    torch.testing.assert_close(looked_up, everything, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again[0, :, 0], everything[:, 1], rtol=1e-5, atol=1e-6)


def test_parts_of_a_direct_computation_join_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _, _, images = world(with_pool=False)
    whole = features(images.at(torch.arange(23)))
    assert whole.shape == (23, SOURCES, 5)
    monkeypatch.setattr(module_under_test, "BATCH_IMAGES", 4)
    torch.testing.assert_close(features(images.at(torch.arange(23))), whole, rtol=1e-5, atol=1e-6)


def test_images_that_are_not_of_the_pool_are_embedded_themselves() -> None:
    """Row -1 is what an episode without a pool has, and an altered image; looked up, it would be another image."""
    features, _, _, images = world()
    batch = batch_from(images)
    altered = batch.support.rows.clone()
    altered[0, 1] = -1
    pictures = batch.support.images.clone()
    pictures[0, 1] = 1 - pictures[0, 1]
    mixed = replace(batch, support=replace(batch.support, images=pictures, rows=altered))
    plain, _, _, _ = world(with_pool=False)
    mask = batch.support.mask
    for one in (mixed, batch_from(images, with_index=False)):
        found, expected = features.attach(one).support.features, plain.attach(one).support.features
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.movedim(1, 2)[mask], expected.movedim(1, 2)[mask], rtol=1e-5, atol=1e-6)
        without_mask = features.of(one.support.images, one.support.rows)
        torch.testing.assert_close(without_mask.movedim(1, 2)[mask], expected.movedim(1, 2)[mask], rtol=1e-5, atol=1e-6)


def test_rows_beyond_the_pool_are_refused() -> None:
    features, network, _, images = world()
    batch = batch_from(images)
    beyond = batch.support.rows.clone()
    beyond[0, 1] = 23
    with pytest.raises(ValueError, match="1 support images have no row"):
        features.attach(replace(batch, support=replace(batch.support, rows=beyond)))
    assert network.seen == 0


PAIRS = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3]])


def known_world(**more: Any) -> tuple[SourceFeatures, CountingNetwork, ImagePool]:
    plain, network, _, images = world()
    return SourceFeatures(network, plain.basis, images, routings=PAIRS, **more), network, images


def by_running(features: SourceFeatures, coefficients: Tensor, images: Tensor) -> Tensor:
    theta = coefficients @ features.basis
    theta = theta.expand(*theta.shape[:-2], len(images), -1)
    return features.network(theta, images.expand(*theta.shape[:-1], *images.shape[1:]))


@pytest.mark.parametrize("limit", [None, 0])  # 0: in a file that is mapped into memory
@pytest.mark.parametrize("shared", [True, False])
def test_known_routings_are_looked_up_and_right(shared: bool, limit: int | None) -> None:
    features, network, images = known_world(memory_limit=limit)
    batch = features.attach(batch_from(images))
    before = network.seen
    rows = PAIRS[[3, 0, 2, 1]].unsqueeze(1) if shared else PAIRS[torch.tensor([[3, 1], [0, 0], [1, 2]])]
    assert batch.known is features
    found = features.of_routings(rows, features.basis, batch.support)
    assert network.seen == before
    assert found is not None
    expected = by_running(features, rows, batch.support.images)
    real = batch.support.mask.expand(found.shape[:-1])
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-6)


def test_the_same_networks_over_another_pool() -> None:
    features, _, images = known_world()
    other = replace(images, images=images.images.flip(0))
    found = features.over(other).of_pool()
    torch.testing.assert_close(found, features.of_pool().flip(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(features.over(other).routings, features.routings)


def test_sources_by_themselves_are_known_without_being_named() -> None:
    features, _, _, images = world()
    batch = features.attach(batch_from(images))
    found = features.of_routings(torch.eye(SOURCES).unsqueeze(1), features.basis, batch.support)
    assert found is not None
    assert batch.support.features is not None
    real = batch.support.mask
    for r in range(SOURCES):
        assert torch.equal(found[r][real], batch.support.features[:, r][real])


def test_images_of_ones_own_run_through_the_asked_networks_only() -> None:
    features, network, images = known_world()
    batch = features.attach(batch_from(images))
    altered = batch.support.images.clone()
    altered[0, 1] = 1 - altered[0, 1]
    rows = batch.support.rows.clone()
    rows[0, 1] = -1
    support = replace(batch.support, images=altered, rows=rows)
    wanted, before = PAIRS[torch.tensor([[3, 1], [3, 0]])], network.seen
    found = features.of_routings(wanted, features.basis, support)
    assert network.seen == before + 1  # one image under one routing, the first episode's
    assert found is not None
    expected = by_running(features, wanted, altered)
    real = batch.support.mask.expand(found.shape[:-1])
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-6)


def test_what_is_not_known_is_said() -> None:
    features, _, images = known_world()
    batch = features.attach(batch_from(images))
    one = PAIRS[:1].unsqueeze(1)
    assert features.of_routings(one, features.basis, batch.support) is not None
    assert features.of_routings(one, features.basis.clone(), batch.support) is not None  # the same sources elsewhere
    other, experts = features.basis + 1e-3, torch.cat([features.basis, features.basis[:1]])
    assert features.of_routings(one, other, batch.support) is None
    assert features.of_routings(torch.cat([one, one[..., :1] * 0], -1), experts, batch.support) is None
    assert features.of_routings(torch.tensor([[[0.6, 0.4, 0.0]]]), features.basis, batch.support) is None
    assert features.of_routings(one.clone().requires_grad_(), features.basis, batch.support) is None


def test_routings_of_another_library_are_refused() -> None:
    plain, network, _, images = world()
    with pytest.raises(ValueError, match=r"routings have shape \(2, 4\); expected \(J, 3\)"):
        SourceFeatures(network, plain.basis, images, routings=torch.ones(2, 4))


def test_blockwise_routings() -> None:
    modules, images = networks(), pool()
    space = ParameterSpace.from_module(modules[0], {"first": r"^0\.", "last": r"^3\."})
    basis = torch.stack([space.flatten(m.state_dict()) for m in modules])
    wanted = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0.5, 0.5], [0, 0, 1]]])  # (J, L, R)
    network = TaskNetwork(modules[0], space)
    features = SourceFeatures(network, basis, images, routings=wanted)
    batch = features.attach(batch_from(images))
    found = features.of_routings(wanted.unsqueeze(1), basis, batch.support)
    assert found is not None
    for j, own in enumerate(wanted):
        theta = compose(own, basis, space)
        expected = network(theta, batch.support.images.flatten(0, 1)).unflatten(0, batch.support.rows.shape)
        real = batch.support.mask
        torch.testing.assert_close(found[j][real], expected[real], rtol=1e-5, atol=1e-6)


def test_singly_the_images_that_are_asked_for_and_no_others() -> None:
    whole, _, _, images = world()
    network = CountingNetwork(networks()[0], whole.network.space)
    singly = SourceFeatures(network, whole.basis, images, singly=True)
    batch = batch_from(images)
    found = singly.attach(batch).support.features
    assert network.seen == SOURCES * 6  # of 23; one is in both
    expected = whole.attach(batch).support.features
    assert found is not None
    assert expected is not None
    mask = batch.support.mask.unsqueeze(1).expand(found.shape[:3])
    torch.testing.assert_close(found[mask], expected[mask])
    again = singly.attach(batch[[1, 0]]).support.features
    assert network.seen == SOURCES * 6
    assert again is not None
    assert torch.equal(again.flip(0)[mask], found[mask])  # bit for bit, in any order


def test_routings_that_change_where_pytorch_does_not_count_are_looked_at_again(crossed_pool: ImagePool) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    space = ParameterSpace.from_module(module)
    basis = torch.randn(2, space.dim, generator=torch.Generator().manual_seed(0))
    known = torch.eye(2)
    features = SourceFeatures(TaskNetwork(module, space), basis, crossed_pool, routings=known)
    with torch.inference_mode():
        rows, mask = torch.tensor([[3, 5, 9]]), torch.ones(1, 3, dtype=torch.bool)
        part = Labelled(crossed_pool.at(rows[0]).unsqueeze(0), torch.zeros(1, 3).long(), mask, rows)
        routing = torch.tensor([[1.0, 0.0]])
        first = features.of_routings(routing, basis, part)
        routing.copy_(torch.tensor([[0.0, 1.0]]))
        second = features.of_routings(routing, basis, part)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, features.of(part.images, rows)[:, 0])
    torch.testing.assert_close(second, features.of(part.images, rows)[:, 1])


def test_rows_of_a_pool_are_embedded_together_and_looked_up(crossed_pool: ImagePool) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    space = ParameterSpace.from_module(module)
    basis = torch.randn(2, space.dim, generator=torch.Generator().manual_seed(0))
    features = SourceFeatures(TaskNetwork(module, space), basis, crossed_pool, singly=True)
    rows = torch.tensor([[3, 700, -1], [3, 5, 9]])
    features.embed_rows(rows)
    features.network = None  # type: ignore[assignment]  # whatever is asked for again would fail
    asked = torch.tensor([[9, 3, 700]])
    found = features.of(crossed_pool.at(asked[0]).unsqueeze(0), asked)
    plain = SourceFeatures(TaskNetwork(module, space), basis)(crossed_pool.at(asked[0]))
    torch.testing.assert_close(found, plain.transpose(0, 1).unsqueeze(0))
