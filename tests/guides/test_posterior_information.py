"""Posterior spread against closed forms: collapsed to the prior, to a point, and alive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_smat.guides import (
    CatalogPosterior,
    ConcretePosterior,
    DirichletPosterior,
    LogisticNormalPosterior,
    PointPosterior,
    RoutingPosterior,
)
from pyro_smat.guides.information import posterior_information
from pyro_smat.routing import Catalog

SOURCES = 4
ALONE = Catalog.k_hot(("a", "b", "c", "d"))
MIXED = Catalog(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]).double(), ("one", "two", "three"))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def logits(episodes: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(episodes, SOURCES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_for_all(row: Tensor, episodes: int = 5) -> Tensor:
    return row.expand(episodes, -1)


@pytest.mark.parametrize(
    "posterior",
    [
        CatalogPosterior(same_for_all(logits(1)), ALONE, num_sources=SOURCES),
        LogisticNormalPosterior(same_for_all(logits(1)), same_for_all(logits(1).exp()), num_sources=SOURCES),
        DirichletPosterior(same_for_all(logits(1).exp()), SOURCES),
        ConcretePosterior(same_for_all(logits(1)), torch.full((5, 1), 0.7, dtype=torch.float64), num_sources=SOURCES),
        ConcretePosterior(
            same_for_all(logits(1)), torch.full((5, 1), 0.7, dtype=torch.float64), num_sources=SOURCES, hard=True
        ),
    ],
    ids=lambda p: type(p).__name__ + " hard" * getattr(p, "hard", False),
)
def test_the_same_posterior_for_every_episode_has_no_information(posterior: RoutingPosterior) -> None:
    assert posterior_information(posterior, 16, seeded()).mutual_information == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("episodes", [2, 4])
def test_one_certain_routing_an_episode_is_log_b(episodes: int) -> None:
    certain = CatalogPosterior(60.0 * torch.eye(SOURCES, dtype=torch.float64)[:episodes], ALONE, num_sources=SOURCES)
    spread = posterior_information(certain, 16, seeded())
    assert spread.mutual_information == pytest.approx(math.log(episodes))
    assert spread.entropy == pytest.approx(0, abs=1e-9)
    assert spread.variance == 0


def test_narrow_gaussians_apart_are_log_b() -> None:
    location = 8.0 * torch.eye(SOURCES, dtype=torch.float64)
    narrow = LogisticNormalPosterior(location, torch.full_like(location, 0.1), num_sources=SOURCES)
    assert posterior_information(narrow, 64, seeded()).mutual_information == pytest.approx(math.log(SOURCES))


def test_information_of_categoricals_is_the_exact_sum() -> None:
    """MI = H(mean of q_i) - mean of H(q_i), and the variance that of a one-hot vector, 1 - sum of squares."""
    posterior = CatalogPosterior(logits(6, seed=1), ALONE, num_sources=SOURCES)
    q = posterior.logits.softmax(-1)
    entropies = torch.special.entr(q).sum(-1)
    exact = torch.special.entr(q.mean(0)).sum() - entropies.mean()
    spread = posterior_information(posterior, 20_000, seeded())
    assert 0.2 < exact < math.log(6)
    assert spread.mutual_information == pytest.approx(exact.item())
    assert spread.entropy == pytest.approx(entropies.mean().item())
    assert spread.variance == pytest.approx((1 - q.square().sum(-1)).mean().item(), abs=0.01)


def test_variance_of_mixtures_by_hand() -> None:
    posterior = CatalogPosterior(logits(3, seed=2)[:, :3], MIXED, num_sources=3)
    q = posterior.logits.softmax(-1).unsqueeze(-1)  # (B, J, 1)
    mean = (q * MIXED.coefficients).sum(1)
    variance = (q * (MIXED.coefficients - mean.unsqueeze(1)).square()).sum((1, 2)).mean()
    assert posterior_information(posterior, 20_000, seeded()).variance == pytest.approx(variance.item(), abs=0.01)


def test_a_point_has_no_variance_and_no_density() -> None:
    spread = posterior_information(PointPosterior(logits(3, seed=3), SOURCES), 8, seeded())
    assert spread.variance == 0
    assert math.isnan(spread.mutual_information)
    weights = logits(3, seed=3).softmax(-1)
    assert spread.entropy == pytest.approx(-(weights * weights.log()).sum(-1).mean().item())  # of its mixing weights


def far_apart(temperature: float, hard: bool = False) -> ConcretePosterior:
    """In float32, one entry for each of 4 episodes: nearly one-hot weights."""
    return ConcretePosterior(
        20 * torch.eye(SOURCES), torch.full((SOURCES, 1), temperature), num_sources=SOURCES, hard=hard
    )


@pytest.mark.parametrize("draws", [1, 8, 64])
def test_cold_concretes_far_apart_are_log_b(draws: int) -> None:
    """Weights that round to 0 and 1 still know their episode: densities are of the ILR coordinates as drawn."""
    for seed in range(5):
        found = far_apart(0.05).mutual_information(draws, torch.Generator().manual_seed(seed))
        assert found == pytest.approx(math.log(SOURCES), abs=1e-3)
        assert found <= math.log(SOURCES) + 1e-5


def test_cold_concretes_that_overlap_know_as_much_as_their_categorical() -> None:
    """As T goes to 0 the weights are one-hot, entry k with probability softmax(logits)_k: no less can be known."""
    values = logits(6, seed=4)
    q = values.softmax(-1)
    exact = (torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(-1).mean()).item()
    cold = torch.full((6, 1), 0.05, dtype=torch.float64)
    soft = ConcretePosterior(values, cold, num_sources=SOURCES).mutual_information(20_000, seeded())
    assert exact - 0.01 < soft < math.log(6)
    for few in range(5):
        assert (
            ConcretePosterior(values, cold, num_sources=SOURCES).mutual_information(
                8, torch.Generator().manual_seed(few)
            )
            >= 0
        )
    hard = ConcretePosterior(values, cold, num_sources=SOURCES, hard=True)
    assert hard.mutual_information(20_000, seeded()) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("hard", [False, True])
def test_concretes_know_what_experts_and_blocks_tell(hard: bool) -> None:
    """Two episodes that differ in the expert alone, or in which block has which source: log 2 either way."""
    of_experts = torch.tensor([[0.0, 0.0, 30.0, 0.0], [0.0, 0.0, 0.0, 30.0]])
    swapped = torch.tensor([[[30.0, 0.0], [0.0, 30.0]], [[0.0, 30.0], [30.0, 0.0]]])
    for values in (of_experts, swapped):
        found = ConcretePosterior(values, torch.full((2, 1), 0.3), num_sources=2, hard=hard).mutual_information(
            64, seeded()
        )
        assert found == pytest.approx(math.log(2), abs=1e-3)


def test_information_of_concretes_by_quadrature() -> None:
    """Two sources: u = log(w_1 / w_2) is logistic with location (l_1 - l_2) / T and scale 1 / T."""
    values = torch.tensor([[0.0, 0.0], [1.5, -1.5], [-1.0, 1.0]], dtype=torch.float64)
    temperature = torch.tensor([[0.4], [0.7], [1.0]], dtype=torch.float64)
    z = torch.linspace(-80, 80, 40_001, dtype=torch.float64) - (values[:, :1] - values[:, 1:]) / temperature
    scaled = temperature * z
    density = temperature * torch.sigmoid(scaled) * torch.sigmoid(-scaled)
    grid = torch.linspace(-80, 80, 40_001, dtype=torch.float64)
    entropy = torch.trapezoid(torch.special.entr(density), grid)
    exact = torch.trapezoid(torch.special.entr(density.mean(0)), grid) - entropy.mean()
    found = ConcretePosterior(values, temperature, num_sources=2).mutual_information(20_000, seeded())
    assert found == pytest.approx(exact.item(), abs=0.01)


def test_information_of_gaussians_by_quadrature() -> None:
    """Two sources, one contrast u ~ N(m_i, s): MI = H(u) - mean of H(u | i) on a fine grid."""
    location = torch.tensor([[0.0, 0.0], [1.5, -1.5], [-1.0, 1.0]], dtype=torch.float64)
    posterior = LogisticNormalPosterior(location, torch.ones_like(location), num_sources=2)
    means = (location[:, 0] - location[:, 1]) / math.sqrt(2)
    grid = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    density = torch.distributions.Normal(means.unsqueeze(-1), 1.0).log_prob(grid).exp()
    entropy = torch.trapezoid(torch.special.entr(density), grid)
    exact = torch.trapezoid(torch.special.entr(density.mean(0)), grid) - entropy.mean()
    found = posterior_information(posterior, 20_000, seeded()).mutual_information
    assert found == pytest.approx(exact.item(), abs=0.01)


def test_blocks_and_experts_count_together() -> None:
    """Two blocks that choose independently know twice as much as one."""
    rows = 60.0 * torch.eye(2, dtype=torch.float64)
    pair = Catalog.k_hot(("a", "b"))
    product = Catalog.blockwise([pair, pair])  # aa, ab, ba, bb
    both = CatalogPosterior(
        torch.stack([(a[:, None] + b).flatten() for a in rows for b in rows]), product, num_sources=2
    )
    assert posterior_information(both, 8, seeded()).mutual_information == pytest.approx(2 * math.log(2))
    location = logits(3)
    experts = LogisticNormalPosterior(location, torch.full_like(location, 0.5), num_sources=2)  # 2 sources, 2 experts
    assert posterior_information(experts, 8, seeded()).mutual_information <= math.log(3)


@pytest.mark.parametrize("family", ["catalog", "concrete", "dirichlet", "logistic_normal"])
def test_a_generator_leaves_the_global_one_alone(family: str) -> None:
    values = logits(2)
    posterior: RoutingPosterior = {
        "catalog": CatalogPosterior(values, ALONE, num_sources=SOURCES),
        "concrete": ConcretePosterior(values, torch.ones(2, 1, dtype=torch.float64), num_sources=SOURCES),
        "dirichlet": DirichletPosterior(values.exp(), SOURCES),
        "logistic_normal": LogisticNormalPosterior(values, torch.ones_like(values), num_sources=SOURCES),
    }[family]
    state = torch.get_rng_state()
    first, again = posterior_information(posterior, 8, seeded()), posterior_information(posterior, 8, seeded())
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)
