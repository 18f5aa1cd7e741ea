"""Draws by episode number: the same in any batch, of the right distribution, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_smat.inference.training.episode_draws import EpisodeDraws, numbered_seed
from pyro_smat.routing.distributions import ILRConcrete, ILRDirichlet, ILRNormal
from pyro_smat.routing.distributions.catalog import CatalogCategorical, RelaxedCatalog

Family = Callable[[Tensor], pyro.distributions.TorchDistribution]
FAMILIES: dict[str, Family] = {
    "normal": lambda a: dist.Normal(a[..., 0], 1.0),
    "event": lambda a: dist.Normal(a, 1.0).to_event(1),
    "no parameters": lambda a: dist.Normal(0.0, 1.0),
    "gamma": lambda a: dist.Gamma(a[..., 0], 1.0),
    "beta": lambda a: dist.Beta(a[..., 0], a[..., 1]),
    "dirichlet": lambda a: dist.Dirichlet(a),
    "categorical": lambda a: dist.Categorical(logits=a),
    "one hot": lambda a: dist.OneHotCategorical(logits=a),
    "bernoulli": lambda a: dist.Bernoulli(logits=a[..., 0]),
    "poisson": lambda a: dist.Poisson(a[..., 0]),
    "student": lambda a: dist.StudentT(a[..., 0] + 2.0),
    "low rank": lambda a: dist.LowRankMultivariateNormal(a, a.unsqueeze(-1), a),
    "mixture": lambda a: dist.MixtureSameFamily(dist.Categorical(logits=a), dist.Normal(a, 1.0)),
    "catalog": CatalogCategorical,
    "relaxed catalog": lambda a: RelaxedCatalog(a, torch.tensor(0.5), True),
    "ilr normal": lambda a: ILRNormal.from_logits(a, a),
    "ilr concrete": lambda a: ILRConcrete(a, torch.full(a.shape[:-1], 0.5)),
    "ilr dirichlet": ILRDirichlet,
}


def parameters(episodes: slice) -> Tensor:
    return torch.rand(8, 1, 4, generator=torch.Generator().manual_seed(0))[episodes] + 0.5


def guide(family: Family, values: Tensor, particles: int | None = None) -> list[Tensor]:
    """Two sites, each after the other; particles in front."""
    if particles is not None:
        with pyro.plate("particles", particles, dim=-3):
            return guide(family, values)
    with pyro.plate("episodes", len(values), dim=-2):
        return [pyro.sample(name, family(values)) for name in ("a", "b")]


@pytest.mark.parametrize("particles", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_in_any_batch(family: str, particles: int | None) -> None:
    before = torch.get_rng_state()
    with EpisodeDraws(0, range(8)):
        whole = guide(FAMILIES[family], parameters(slice(8)), particles)
    with EpisodeDraws(0, range(2, 5)):
        part = guide(FAMILIES[family], parameters(slice(2, 5)), particles)
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(whole, part, strict=True):
        episodes = 0 if particles is None else 1
        assert torch.equal(first.narrow(episodes, 2, 3), second)
    assert not torch.equal(*whole)


def test_draws_are_of_their_distribution_and_independent() -> None:
    gamma = lambda a: dist.Gamma(a[..., 0], 1.0)  # noqa: E731
    with EpisodeDraws(7, range(2000)):
        first, second = guide(gamma, torch.full((2000, 1, 1), 2.5))
    assert stats.kstest(first.flatten(), stats.gamma(2.5).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(first.flatten(), second.flatten()).statistic) < 0.08
    assert len({numbered_seed(0, 1, i) for i in range(1000)} | {numbered_seed(1, 1, i) for i in range(1000)}) == 2000


def test_gradients_flow_through_draws() -> None:
    rate = torch.full((3, 1), 2.0, requires_grad=True)
    with EpisodeDraws(0, range(3)), pyro.plate("episodes", 3, dim=-2):
        drawn = pyro.sample("z", dist.Gamma(torch.full((3, 1), 1.5), rate))
    drawn.sum().backward()
    torch.testing.assert_close(rate.grad, -drawn.detach() / 2.0)


def test_sites_outside_the_plate_come_from_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.randn(())
    torch.manual_seed(3)
    with EpisodeDraws(0, range(3)):
        assert torch.equal(pyro.sample("z", dist.Normal(0.0, 1.0)), expected)


def test_what_cannot_be_told_apart_is_refused() -> None:
    mixed = r"site 'a': VonMises draws by aten::rand of shape .* mixes the episodes"
    with pytest.raises(ValueError, match=mixed), EpisodeDraws(0, range(8)):
        guide(lambda a: dist.VonMises(a[..., 0], 1.0), parameters(slice(8)))
    other = r"site 'a' has batch shape \(8, 1\); expected 5 episodes at dim -2"
    with pytest.raises(ValueError, match=other), EpisodeDraws(0, range(5)):
        guide(FAMILIES["normal"], parameters(slice(8)))
