"""What all posteriors have in common: shapes, draws against mean and density, choice, entropy and uncertainty."""

from __future__ import annotations

import math

import pytest
import torch
from small_posteriors import FAMILIES, SHAPES, SIMPLEX_FAMILIES, prior_of_sites, random_posterior, small_catalog

from pyro_smat.guides import (
    CatalogPosterior,
    ConcretePosterior,
    DirichletPosterior,
    LogisticNormalPosterior,
    PointPosterior,
    RoutingPosterior,
)
from pyro_smat.models.priors import CatalogPrior, LogisticNormalPrior, RoutingPrior
from pyro_smat.routing import CATALOG_SITE, EXPERT_SITE, SOURCE_SITE, Catalog

ONES = torch.ones((), dtype=torch.float64)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("sources", "experts"), SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_simplices(family: str, sources: int, experts: int, blocks: int) -> None:
    q = random_posterior(family, sources, experts, blocks)
    assert (q.num_sources, q.num_experts, q.num_blocks) == (sources, experts, blocks)
    event = (blocks,) * (blocks > 1) + (sources + experts,)
    draws = q.sample(7, torch.Generator().manual_seed(5))
    assert draws.shape == (7, 2, *event)
    assert q.mean.shape == q.mode.shape == (2, *event)
    for c in (draws, q.mean, q.mode, *(q.top(k)[0] for k in (1, 2, 9))):
        assert (c >= 0).all()
        torch.testing.assert_close(c[..., :sources].sum(-1), ONES.expand(c.shape[:-1]))
        if experts:
            torch.testing.assert_close(c[..., sources:].sum(-1), ONES.expand(c.shape[:-1]))
    for k in (1, 2, 9):
        coefficients, weights = q.top(k)
        assert coefficients.shape == (*weights.shape, *event)
        torch.testing.assert_close(weights.sum(0), ONES.expand(2))
    assert torch.equal(draws, q.sample(7, torch.Generator().manual_seed(5)))
    if family != "point" and max(sources, experts) > 1:
        assert not torch.equal(draws, q.sample(7, torch.Generator().manual_seed(6)))
    assert q.log_prob(draws).shape == (7, 2)
    assert q.log_prob(draws.unsqueeze(1).expand(7, 3, *draws.shape[1:])).shape == (7, 3, 2)
    assert q.log_prob(q.mode).shape == (2,)
    torch.testing.assert_close(q.routing_probabilities().sum(-1), ONES.expand(2))
    weights = q.mean[..., :sources]
    torch.testing.assert_close(q.source_weights, weights if blocks == 1 else weights.mean(1))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (1, 3), (3, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_posterior_of_some_episodes(family: str, sources: int, experts: int, blocks: int) -> None:
    q, chosen = random_posterior(family, sources, experts, blocks, episodes=4), [3, 1]
    check_part(q, q[chosen], chosen)
    check_part(q, q[2:3], [2])


def check_part(q: RoutingPosterior, part: RoutingPosterior, chosen: list[int]) -> None:
    """Draws of one episode are those of a posterior of this episode alone."""
    assert type(part) is type(q)
    assert (part.num_sources, part.num_experts, part.num_blocks) == (q.num_sources, q.num_experts, q.num_blocks)
    draws = q.sample(5, torch.Generator().manual_seed(0))
    assert part.sample(3).shape == (3, len(chosen), *draws.shape[2:])
    for name in ("mean", "mode", "source_weights"):
        torch.testing.assert_close(getattr(part, name), getattr(q, name)[chosen])
    torch.testing.assert_close(part.entropy(), q.entropy()[chosen])
    torch.testing.assert_close(part.log_prob(draws[:, chosen]), q.log_prob(draws)[:, chosen])
    for site, distribution in part.sites().items():
        assert distribution.batch_shape == (len(chosen), 1), site


@pytest.mark.parametrize("covariance", ["low_rank", "full"])
def test_some_episodes_of_correlated_logits(covariance: str) -> None:
    factor = 0.3 * torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loc = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)
    q = LogisticNormalPosterior(
        loc,
        loc.exp(),
        num_sources=3,
        factor=factor,
        covariance=covariance,  # type: ignore[arg-type]
    )
    check_part(q, q[[3, 1]], [3, 1])


def test_some_episodes_of_one_hot_draws() -> None:
    values = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)
    q = ConcretePosterior(values, torch.full((4, 2), 0.5).double(), num_sources=3, hard=True)
    assert set(q[[3, 1]].sample(9).flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("sources", "experts"), SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_those_of_the_prior(family: str, sources: int, experts: int, blocks: int) -> None:
    """Batch shape (B, 1), the plates of episodes and queries; event shapes that the prior draws."""
    q, prior = random_posterior(family, sources, experts, blocks), prior_of_sites(family, sources, experts, blocks)
    sites = q.sites()
    assert tuple(sites) == prior.site_names
    for name, site in sites.items():
        assert site.batch_shape == (2, 1)
        assert site.event_shape == prior.distribution(name, {}).event_shape
        value = site.sample((3,))
        assert value.shape == (3, 2, 1, *site.event_shape)
        assert site.log_prob(value).shape == (3, 2, 1)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (1, 3), (3, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_mean_and_draws_agree(family: str, sources: int, experts: int, blocks: int) -> None:
    q = random_posterior(family, sources, experts, blocks)
    draws = q.sample(40_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(q.mean, draws.mean(0), rtol=0, atol=0.01)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_that_of_the_sites(family: str, blocks: int) -> None:
    """The sites' own draws, turned into coefficients by the prior, as a model does."""
    q, prior = random_posterior(family, 3, 2, blocks), prior_of_sites(family, 3, 2, blocks)
    torch.manual_seed(0)
    drawn = {name: site.sample((5,)) for name, site in q.sites().items()}
    expected = sum(site.log_prob(drawn[name]).squeeze(-1) for name, site in q.sites().items())
    assert isinstance(expected, torch.Tensor)
    coefficients = prior.coefficients_of(drawn).squeeze(2)
    torch.testing.assert_close(q.log_prob(coefficients), expected)


@pytest.mark.parametrize("part", [(2, 0), (1, 2)])
@pytest.mark.parametrize("family", ["logistic_normal", "concrete", "dirichlet"])
def test_mode_by_a_grid(family: str, part: tuple[int, int]) -> None:
    """Two weights have one contrast: the weights where its density is largest."""
    q = random_posterior(family, *part, episodes=3)
    (site,) = q.sites().values()
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    best = grid[site.log_prob(grid.view(-1, 1, 1, 1).expand(-1, 3, 1, 1)).squeeze(-1).argmax(0)]
    first = (math.sqrt(2) * best).sigmoid()  # contrast (l_1 - l_2) / sqrt 2
    torch.testing.assert_close(q.mode[:, -2], first, rtol=0, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("family", ["logistic_normal", "concrete", "dirichlet", "catalog", "hierarchical"])
def test_mode_is_the_best_of_many_draws(family: str, blocks: int) -> None:
    q = random_posterior(family, 3, 2, blocks)
    assert (q.log_prob(q.sample(2000, torch.Generator().manual_seed(0))) <= q.log_prob(q.mode) + 1e-9).all()


@pytest.mark.parametrize("family", SIMPLEX_FAMILIES)
def test_parts_and_blocks_are_independent(family: str) -> None:
    """The density of all is the product of those of the parts, and of the blocks."""
    q = random_posterior(family, 3, 2)
    draws = q.sample(5, torch.Generator().manual_seed(0))
    names = {SOURCE_SITE: draws[..., :3], EXPERT_SITE: draws[..., 3:]}
    alone = [q.log_prob(draws) - _without(family, q, name).log_prob(value) for name, value in names.items()]
    torch.testing.assert_close(sum(alone), q.log_prob(draws))
    blockwise = random_posterior(family, 3, 2, blocks=2)
    draws = blockwise.sample(5, torch.Generator().manual_seed(0))
    each = [_block(family, blockwise, index).log_prob(draws[:, :, index]) for index in (0, 1)]
    torch.testing.assert_close(each[0] + each[1], blockwise.log_prob(draws))
    means = torch.stack([_block(family, blockwise, index).mean for index in (0, 1)], dim=1)
    torch.testing.assert_close(means, blockwise.mean)


def _without(family: str, q: RoutingPosterior, site: str) -> RoutingPosterior:
    """The posterior of one part alone, as sources."""
    part = slice(0, 3) if site == SOURCE_SITE else slice(3, 5)
    return _slice(family, q, (slice(None), part), 0 if site == SOURCE_SITE else 1)


def _block(family: str, q: RoutingPosterior, index: int) -> RoutingPosterior:
    return _slice(family, q, (slice(None), index), None)


def _slice(family: str, q: RoutingPosterior, where: tuple, part: int | None) -> RoutingPosterior:
    size = 3 if part in (None, 0) else 2
    if isinstance(q, LogisticNormalPosterior):
        return LogisticNormalPosterior(q.loc[where], q.scale[where], num_sources=size)
    if isinstance(q, ConcretePosterior):
        own = q.temperature if part is None else q.temperature[:, part : part + 1]
        return ConcretePosterior(q.logits[where], own, num_sources=size)
    if isinstance(q, DirichletPosterior):
        return DirichletPosterior(q.concentration[where], size)
    assert isinstance(q, PointPosterior)
    return PointPosterior(q.logits[where], size)


# --- what decisions and abstention ask --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_is_that_of_the_probabilities(family: str, blocks: int) -> None:
    q = random_posterior(family, 3, 2, blocks)
    choice = q.routing_probabilities()
    torch.testing.assert_close(q.entropy(), -(choice * choice.clamp(min=1e-300).log()).sum(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_are_the_choice_on_the_simplex_and_rows_over_a_catalog(family: str) -> None:
    q = random_posterior(family, 3, 2)
    if isinstance(q, CatalogPosterior):
        assert q.routing_probabilities().shape == (2, len(small_catalog(3, 2)))
    else:
        torch.testing.assert_close(q.routing_probabilities(), q.mean[:, :3])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", SIMPLEX_FAMILIES)
def test_top_keeps_the_largest_weights(family: str, k: int) -> None:
    q = random_posterior(family, 4, 3)
    (mixture,), weights = q.top(k)
    assert (weights == 1).all()
    for part in (slice(0, 4), slice(4, 7)):
        for i in range(2):
            mean = q.mean[i, part]
            kept = mean.argsort(descending=True)[:k]
            expected = torch.zeros_like(mean)
            expected[kept] = mean[kept] / mean[kept].sum()
            torch.testing.assert_close(mixture[i, part], expected)


def test_error_messages() -> None:
    q = random_posterior("catalog", 3, 2)
    mismatches: list[tuple[RoutingPosterior, RoutingPrior]] = [
        (q, LogisticNormalPrior(3, 2)),
        (random_posterior("logistic_normal", 3, 2), CatalogPrior(small_catalog(3, 2))),
        (random_posterior("point", 3, 2), CatalogPrior(small_catalog(3, 2))),
        (random_posterior("dirichlet", 3, 2), LogisticNormalPrior(3)),
        (random_posterior("point", 3, 2), LogisticNormalPrior(3)),
        (random_posterior("concrete", 3, 0), LogisticNormalPrior(3, 2)),
    ]
    for posterior, prior in mismatches:
        with pytest.raises(ValueError, match=r"Posterior has sites .* expected a prior of the same family"):
            posterior.kl(prior)


LOGITS = torch.tensor([[60.0, -60.0, 0.0, 40.0, -40.0]])
EXTREME: dict[str, RoutingPosterior] = {
    "narrow": LogisticNormalPosterior(LOGITS, torch.full_like(LOGITS, 1e-3), num_sources=3),
    "wide": LogisticNormalPosterior(LOGITS, torch.full_like(LOGITS, 8.0), num_sources=3),
    "point": PointPosterior(LOGITS, 3),
    "cold": ConcretePosterior(LOGITS, torch.full((1, 1), 0.05), num_sources=3),
    "corners": DirichletPosterior(torch.full((1, 5), 0.01), 3),
    "sure": DirichletPosterior(torch.tensor([[1e4, 0.1, 0.1, 0.1, 1e4]]), 3),
    "catalog": CatalogPosterior(
        torch.tensor([[300.0, 0.0, -300.0, 1.0, 2.0, 3.0]]), Catalog.k_hot("abc", 2), num_sources=3
    ),
}


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_logits_stay_finite(name: str) -> None:
    """Nearly certain routers in float32: nothing becomes NaN."""
    q = EXTREME[name]
    for values in (q.mean, q.mode, q.entropy(), q.routing_probabilities()):
        assert torch.isfinite(values).all()
    draws = q.sample(500, torch.Generator().manual_seed(0))
    assert torch.isfinite(draws).all()
    assert not torch.isnan(q.log_prob(draws)).any()
    prior = LogisticNormalPrior(3, 2) if CATALOG_SITE not in q.sites() else CatalogPrior(Catalog.k_hot("abc", 2))
    torch.manual_seed(0)
    assert torch.isfinite(q.kl(prior)).all()
