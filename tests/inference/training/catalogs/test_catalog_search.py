"""Catalog search: planted mixtures are found, and both stages agree with brute force where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.inference.objective.candidates import candidate_losses
from pyro_smat.inference.training.catalogs import CatalogSearch, search, select_routings
from pyro_smat.inference.training.catalogs.random import draw_routings
from pyro_smat.metrics.risk import cvar
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import build, choose
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary

METHODS = ("greedy", "beam", "random")
SOURCES = ("pre", "up+", "up-", "low+", "low-")


def planted_model(blocks: dict[str, str] | None = None) -> RoutedModel:
    """Linear features of 2 x 2 images. The mean of up+ and up- is the upper pixels, that of low+ and low- the lower
    ones; each by itself sees little but the sum of its two pixels, and "pre" nothing.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    space = ParameterSpace.from_module(network, blocks)
    upper, lower = torch.diag(torch.tensor([1.0, 1, 0, 0])), torch.diag(torch.tensor([0.0, 0, 1, 1]))
    sums = [3 * pixels.sum(1, True) * pixels.sum(0) for pixels in (upper, lower)]
    first = [torch.zeros(4, 4), upper + sums[0], upper - sums[0], lower + sums[1], lower - sums[1]]
    basis = torch.stack([torch.cat([weight.flatten(), torch.eye(4).flatten()]) for weight in first]).double()
    prior = LogisticNormalPrior(5, 0, num_blocks=len(space.block_names))
    library = SourceLibrary(SOURCES, basis, space)
    return RoutedModel(TaskNetwork(network, space), library, prior=prior, compute_dtype=torch.float64).double()


def planted_episode(upper: bool, seed: int) -> Episode:
    """Four classes that two pixels tell; the other two are noise."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.arange(4) * torch.pi / 2 + 0.3
    centres = torch.stack([angles.cos(), angles.sin()], -1)

    def images(count: int) -> Tensor:
        signal = centres.repeat_interleave(count, 0) + 0.1 * torch.randn(4 * count, 2, generator=generator)
        noise = 0.5 * torch.randn(4 * count, 2, generator=generator)
        return torch.stack([signal, noise] if upper else [noise, signal], 1).unsqueeze(1).double()

    labels = torch.arange(4)
    return Episode(
        Labelled(images(2), labels.repeat_interleave(2)), Labelled(images(4), labels.repeat_interleave(4)), way=4
    )


def planted_batches(episodes: int = 12) -> list[EpisodeBatch]:
    """Two thirds of the episodes are about the upper pixels."""
    drawn = [planted_episode(i % 3 > 0, i) for i in range(episodes)]
    return [EpisodeBatch.collate(drawn[: episodes // 2]), EpisodeBatch.collate(drawn[episodes // 2 :])]


def search_catalog(
    model: RoutedModel,
    batches: list[EpisodeBatch],
    method: str = "greedy",
    *,
    rho: float = 1.0,
    seed: int = 0,
    num_experts: int = 0,
    **options: Any,
) -> Catalog:
    """As a config has it built: by the name of its kind and its options."""
    choice = choose("catalog", {"kind": method, "size": 16, "max_sources": 3, **options})
    supplied = {"search": CatalogSearch(model, lambda episodes: batches, rho, seed), "num_experts": num_experts}
    return build(choice, supplied)


def served_losses(model: RoutedModel, batches: list[EpisodeBatch], catalog: Catalog) -> Tensor:
    """``(N,)``, every episode under its best routing."""
    return torch.cat([candidate_losses(model, batch, catalog.coefficients).amin(0) for batch in batches])


@pytest.mark.parametrize("method", METHODS)
def test_planted_mixtures_are_found(method: str) -> None:
    model, batches = planted_model(), planted_batches()
    catalog = search_catalog(model, batches, method=method, size=2, max_sources=3)
    rows = dict(zip(catalog.names, catalog.coefficients.tolist(), strict=True))
    assert rows == {"up++up-": [0, 0.5, 0.5, 0, 0], "low++low-": [0, 0, 0, 0.5, 0.5]}
    singles = served_losses(model, batches, Catalog.k_hot(SOURCES)).mean()
    assert served_losses(model, batches, catalog).mean() < 0.3 * singles


def test_the_tail_asks_for_what_the_mean_does_not() -> None:
    """Eleven episodes of one kind and one of the other: what serves the eleven is a disaster for the one."""
    batches = [EpisodeBatch.collate([planted_episode(i > 0, i) for i in range(12)])]
    found = {
        rho: search_catalog(planted_model(), batches, size=1, max_sources=2, rho=rho).names for rho in (1.0, 1 / 12)
    }
    assert found == {1.0: ("up++up-",), 1 / 12: ("pre",)}


def test_what_most_episodes_propose_comes_first() -> None:
    """With room for one proposal, the rarer kind of episode is left with the best single source."""
    catalog = search_catalog(planted_model(), planted_batches(), size=2, candidates=1)
    assert sorted(catalog.names) == ["low-", "up++up-"]


def test_growing_stops_where_no_source_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs lose more than single sources: the forward selection never sees that triples would win."""

    def losses_by_size(model: RoutedModel, batch: EpisodeBatch, rows: Tensor, **options: object) -> Tensor:
        sizes = (rows > 0).sum(-1)
        return torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])[sizes].unsqueeze(-1).expand(-1, len(batch))

    monkeypatch.setattr(search, "candidate_losses", losses_by_size)
    for method, opened in (("greedy", 1), ("beam", 1), ("random", 3)):
        catalog = search_catalog(planted_model(), planted_batches(), method=method, size=1, max_sources=4)
        assert (catalog.coefficients > 0).sum() == opened


@pytest.mark.parametrize("seed", range(3))
def test_wide_beams_are_brute_force_and_greedy_comes_between(make_router: Callable, seed: int) -> None:
    """With a catalog as large as one wants, every episode gets the best of all routings that are proposed."""
    router = make_router(seed=seed, sources=4, experts=1, episodes=8)
    model, batches = router.model, [router.batch]
    members = [(s, m) for k in (1, 2) for s in combinations(range(4), k) for m in (None, 0)]
    everything = Catalog.uniform_mixtures(router.library.names, members, 1)
    brute = served_losses(model, batches, everything)
    singles = served_losses(model, batches, Catalog.uniform_mixtures(router.library.names, members[:8], 1))

    def found(**arguments: Any) -> Tensor:
        catalog = search_catalog(model, batches, size=20, max_sources=2, **arguments)
        assert set(catalog.names) <= set(everything.names)
        return served_losses(model, batches, catalog)

    torch.testing.assert_close(found(method="beam", beam_width=20), brute)
    torch.testing.assert_close(found(method="random", candidates=20), brute)
    greedy, beam = found(method="greedy"), found(method="beam", beam_width=2)
    assert (brute <= beam + 1e-12).all()
    assert (beam <= greedy + 1e-12).all()
    assert (greedy <= singles + 1e-12).all()
    assert greedy.mean() < singles.mean() - 1e-3


def test_greedy_is_the_forward_selection_of_every_episode(make_router: Callable) -> None:
    """By hand, one episode at a time: the best single routing, then the best source to add, until none helps."""
    router = make_router(sources=5, experts=2, episodes=6)
    expected = []
    for i in range(6):
        batch = router.batch[i : i + 1]

        def loss(member: tuple[tuple[int, ...], int | None], batch: EpisodeBatch = batch) -> float:
            row = Catalog.uniform_mixtures(router.library.names, [member], 2).coefficients
            return candidate_losses(router.model, batch, row).item()

        best = min((((r,), m) for r in range(5) for m in (None, 0, 1)), key=loss)
        while len(best[0]) < 4:
            grown = [(tuple(sorted((*best[0], r))), best[1]) for r in range(5) if r not in best[0]]
            if loss(min(grown, key=loss)) >= loss(best):
                break
            best = min(grown, key=loss)
        expected.append(loss(best))
    catalog = search_catalog(router.model, [router.batch], size=6, max_sources=4)
    found = served_losses(router.model, [router.batch], catalog)
    assert found.mean().item() <= sum(expected) / 6 + 1e-12  # another episode's routing may serve even better
    assert len(catalog) <= 6
    assert max((row[:5] > 0).sum() for row in catalog.coefficients) > 1


@pytest.mark.parametrize("size", [2, 4])
def test_greedy_serves_training_episodes_better_than_as_many_random_routings(make_router: Callable, size: int) -> None:
    router = make_router(sources=8, experts=0, episodes=12)
    batches = [router.batch]

    def mean_loss(**arguments: Any) -> float:
        catalog = search_catalog(router.model, batches, size=size, max_sources=4, **arguments)
        return served_losses(router.model, batches, catalog).mean().item()

    random = [mean_loss(method="random", candidates=12, seed=seed) for seed in range(5)]
    assert mean_loss(method="greedy") <= min(random)


def test_every_routing_runs_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = planted_model(), planted_batches()
    evaluated: dict[int, list[tuple[float, ...]]] = {id(batch.way): [] for batch in batches}
    monkeypatch.setattr(EpisodeBatch, "to", lambda batch, device: batch)

    def watched(model: RoutedModel, batch: EpisodeBatch, coefficients: Tensor, **options: object) -> Tensor:
        evaluated[id(batch.way)] += [tuple(row) for row in coefficients.tolist()]
        return candidate_losses(model, batch, coefficients)

    monkeypatch.setattr(search, "candidate_losses", watched)
    search_catalog(model, batches, method="beam", size=3, max_sources=4)
    for rows in evaluated.values():
        assert len(rows) == len(set(rows)) >= 5


def test_the_search_is_deterministic_and_leaves_the_model_alone(make_router: Callable) -> None:
    router = make_router(sources=6, experts=1, episodes=4)
    router.model.train()
    state = torch.get_rng_state()
    for method in ("greedy", "random"):
        arguments: dict[str, Any] = {"method": method, "size": 4, "candidates": 10}
        first, second = (search_catalog(router.model, [router.batch], **arguments) for _ in range(2))
        assert first.names == second.names
        assert torch.equal(first.coefficients, second.coefficients)
    assert torch.equal(torch.get_rng_state(), state)
    assert router.model.training


def test_random_routings_are_uniform_over_all() -> None:
    """Ten subsets of 1 or 2 of 4 sources, with the expert or without."""
    counts: dict[object, int] = {}
    for seed in range(1500):
        drawn = draw_routings(4, 1, 2, 3, Random(seed))
        assert len(set(drawn)) == 3
        for member in drawn:
            counts[member] = counts.get(member, 0) + 1
    assert len(counts) == 20
    expected = 1500 * 3 / 20
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 43.8  # chi2(19), p = .001
    assert len(draw_routings(4, 1, 9, 30, Random(0))) == 30  # all, listed not drawn


def test_blocks_share_the_mixture() -> None:
    catalog = search_catalog(planted_model({"first": r"1\.", "last": r"2\."}), planted_batches(6), size=2)
    plain = search_catalog(planted_model(), planted_batches(6), size=2)
    assert catalog.names == plain.names
    assert torch.equal(catalog.coefficients, plain.coefficients.unsqueeze(1).expand(-1, 2, -1))


@pytest.mark.parametrize("method", METHODS)
def test_experts_without_weights_are_offered_with_every_mixture(method: str) -> None:
    """Before training there is nothing to try of an expert: 7 routings are 2 mixtures with each of 3."""
    catalog = search_catalog(planted_model(), planted_batches(), method, size=7, num_experts=3)
    mixtures = search_catalog(planted_model(), planted_batches(), method, size=2)
    assert catalog.names == tuple(f"{name}/expert{m}" for name in mixtures.names for m in range(3))
    assert torch.equal(catalog.coefficients[::3, :5], mixtures.coefficients)
    assert torch.equal(catalog.coefficients[:, 5:], torch.eye(3).repeat(2, 1))


@pytest.mark.parametrize("method", METHODS)
def test_the_option_episodes_says_how_many_are_drawn(method: str) -> None:
    asked = []

    def draw(episodes: int) -> list[EpisodeBatch]:
        asked.append(episodes)
        return planted_batches(6)

    build(choose("catalog", {"kind": method, "episodes": 37}), {"search": CatalogSearch(planted_model(), draw)})
    assert asked == [37]


def test_search_arguments(make_router: Callable) -> None:
    router = make_router()
    for wrong in ({"size": 0}, {"max_sources": 0}, {"candidates": 0}, {"method": "beam", "beam_width": 0}):
        with pytest.raises(ValueError, match=r"got .*: 0.*; expected numbers of at least 1"):
            search_catalog(router.model, [router.batch], **wrong)
    with pytest.raises(ValueError, match=r"'greedy' has no option 'beam_width'"):
        search_catalog(router.model, [router.batch], beam_width=3)
    for episodes in (0, 64):
        with pytest.raises(ValueError, match=rf"0 batches of {episodes} episodes; expected training episodes"):
            search_catalog(router.model, [], episodes=episodes)
    with pytest.raises(ValueError, match="rho is 0"):
        search_catalog(router.model, [router.batch], rho=0)


# ---------------------------------------------------------------- stage 2


def random_losses(routings: int, episodes: int, seed: int) -> Tensor:
    return torch.rand(routings, episodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rho", [1.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_selection_against_the_exhaustive_optimum(rho: float, seed: int) -> None:
    """One routing: exact. More: near the optimum, and never below the known share of the gain at rho = 1."""
    losses = random_losses(8, 12, seed)
    (first,) = select_routings(losses, 1, rho)
    assert first == int(cvar(losses, rho).argmin())
    start = cvar(losses[first], rho).item()
    for size in (2, 3):
        chosen = select_routings(losses, size, rho)
        assert len(set(chosen)) == size
        found = cvar(losses[chosen].amin(0), rho).item()
        optimum = min(cvar(losses[list(c)].amin(0), rho).item() for c in combinations(range(8), size))
        assert optimum - 1e-12 <= found <= (1.1 if rho == 1 else 1.35) * optimum
        if rho == 1.0:
            after_first = min(cvar(losses[[first, *c]].amin(0), rho).item() for c in combinations(range(8), size - 1))
            assert start - found >= (1 - 1 / torch.e) * (start - after_first) - 1e-12


@pytest.mark.parametrize("rho", [1.0, 0.4, 0.05])
def test_no_exchange_of_one_routing_helps(rho: float) -> None:
    losses = random_losses(10, 20, 7)
    chosen = select_routings(losses, 4, rho)
    found = cvar(losses[chosen].amin(0), rho).item()
    for place in range(4):
        for row in range(10):
            assert cvar(losses[[*chosen[:place], row, *chosen[place + 1 :]]].amin(0), rho).item() >= found


def test_the_generalist_makes_room_for_specialists() -> None:
    losses = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.0]])
    assert select_routings(losses, 1) == [0]
    assert sorted(select_routings(losses, 2)) == [1, 2]


def test_selection_stops_when_nothing_improves() -> None:
    losses = torch.tensor([[1.0, 5.0, 5.0], [5.0, 1.0, 5.0], [5.0, 5.0, 1.0], [1.0, 5.0, 5.0], [9.0, 9.0, 9.0]])
    assert select_routings(losses, 5) == [0, 1, 2]
    assert select_routings(torch.ones(4, 3), 4) == [0]


def test_a_hopeless_episode_does_not_stop_the_selection() -> None:
    """The worst third is one episode that nothing saves: the CVaR is stuck, the mean is not."""
    losses = torch.tensor([[9.0, 1.0, 5.0], [9.0, 5.0, 1.0], [9.5, 0.0, 0.0]])
    assert select_routings(losses, 3, rho=1 / 3) == [0, 2]
    assert select_routings(losses, 3, rho=1.0) == [2, 0]


def test_selection_arguments() -> None:
    with pytest.raises(ValueError, match=r"losses are \(3,\) and size is 1"):
        select_routings(torch.ones(3), 1)
    with pytest.raises(ValueError, match="size is 0"):
        select_routings(torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match="1 of 3 routings have NaN or infinite losses, the first is row 2"):
        select_routings(torch.tensor([[1.0], [2.0], [float("nan")]]), 1)
    with pytest.raises(ValueError, match="rho is 2"):
        select_routings(torch.ones(2, 3), 1, rho=2)
