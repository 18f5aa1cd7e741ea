"""Routing posteriors: closed forms against quadrature, large Monte Carlo and torch's own distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pyro_smat.guides import CatalogPosterior, LogisticNormalPosterior, PointPosterior, RoutingPosterior
from pyro_smat.models.priors import CatalogPrior, CostAwareCatalogPrior, LogisticNormalPrior
from pyro_smat.routing import Catalog, contrast_basis

SHAPES = [(1, 0), (1, 1), (1, 3), (2, 0), (3, 1), (3, 2), (4, 3)]


def normal(sources: int, experts: int, episodes: int = 2, seed: int = 0) -> LogisticNormalPosterior:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(episodes, sources + experts, generator=generator, dtype=torch.float64)
    scale = 0.4 + torch.rand(episodes, sources + experts, generator=generator, dtype=torch.float64)
    return LogisticNormalPosterior(loc, scale, sources)


def prior_of(sources: int, experts: int, scale: float = 1.3) -> LogisticNormalPrior:
    loc = torch.linspace(-1, 0.5, sources + experts, dtype=torch.float64)
    return LogisticNormalPrior(sources, experts, loc, scale).double()


def contrast_kl(mu: Tensor, s: Tensor, mu0: Tensor, s0: Tensor) -> Tensor:
    """KL of the softmaxes of N(mu, diag s^2) and N(mu0, diag s0^2), without any basis of contrasts.

    P0 = S0^-1 - S0^-1 1 1' S0^-1 / (1' S0^-1 1);
    KL = [tr(P0 S) + (mu - mu0)' P0 (mu - mu0) - (n - 1) + ln(det S0 1'S0^-1 1 / (det S 1'S^-1 1))] / 2.
    """
    n = len(mu)
    inverse = torch.diag(s0**-2)
    ones = torch.ones(n, 1, dtype=mu.dtype)
    total = (ones.T @ inverse @ ones).squeeze()
    p0 = inverse - inverse @ ones @ ones.T @ inverse / total
    shift = mu - mu0
    log_ratio = (s0**2).log().sum() + total.log() - (s**2).log().sum() - (s**-2).sum().log()
    return 0.5 * ((p0.diag() * s**2).sum() + shift @ p0 @ shift - (n - 1) + log_ratio)


# --- logistic normal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_kl_is_the_contrast_formula(sources: int, experts: int) -> None:
    q, p = normal(sources, experts), prior_of(sources, experts)
    for i in range(2):
        expected = torch.zeros((), dtype=torch.float64)
        for part in (slice(0, sources), slice(sources, None)):
            if len(q.loc[i, part]) > 1:
                expected += contrast_kl(q.loc[i, part], q.scale[i, part], p.loc[part], p.scale[part])
        torch.testing.assert_close(q.kl(p)[i], expected, rtol=1e-10, atol=1e-10)


def test_common_shift_of_the_logits_costs_nothing() -> None:
    q, p = normal(4, 3), prior_of(4, 3)
    moved = LogisticNormalPosterior(q.loc + torch.tensor([3.0] * 4 + [-7.0] * 3), q.scale, 4)
    torch.testing.assert_close(moved.kl(p), q.kl(p), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved.mean, q.mean)
    apart = LogisticNormalPosterior(q.loc + torch.tensor([3.0] + [0.0] * 6), q.scale, 4)
    assert ((apart.kl(p) - q.kl(p)).abs() > 0.1).all()


@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (3, 2), (4, 3)])
def test_kl_by_monte_carlo(sources: int, experts: int) -> None:
    """E_q [log q - log p] over draws of coefficients, both densities from log_prob."""
    q, p = normal(sources, experts), prior_of(sources, experts)
    as_posterior = LogisticNormalPosterior(p.loc.expand(2, -1), p.scale.expand(2, -1), sources)
    draws = q.sample(200_000, torch.Generator().manual_seed(1))
    ratio = q.log_prob(draws) - as_posterior.log_prob(draws)
    error = ratio.std(0) / math.sqrt(len(draws))
    assert ((ratio.mean(0) - q.kl(p)).abs() < 5 * error).all()
    assert (error < 0.01).all()


def test_log_prob_is_normalised_for_two_sources() -> None:
    q = normal(2, 0, episodes=1)
    basis = contrast_basis(2, q.loc)

    def density(u: float) -> float:
        weights = (torch.tensor([u], dtype=torch.float64) @ basis.mT).softmax(-1)
        return q.log_prob(weights.expand(1, 2)).exp().item()

    assert integrate.quad(density, -15, 15, points=[0.0])[0] == pytest.approx(1.0, abs=1e-6)


def test_log_prob_is_normalised_for_three_sources() -> None:
    q = normal(3, 0, episodes=1)
    grid = torch.linspace(-12, 12, 481, dtype=torch.float64)
    contrasts = torch.cartesian_prod(grid, grid)
    weights = (contrasts @ contrast_basis(3, q.loc).mT).softmax(-1)
    density = q.log_prob(weights.unsqueeze(1)).exp().squeeze(1).view(481, 481).numpy()
    total = np.trapezoid(np.trapezoid(density, grid.numpy()), grid.numpy())
    assert total == pytest.approx(1.0, abs=1e-6)


def test_log_prob_of_both_parts_is_the_sum() -> None:
    q = normal(3, 2)
    draws = q.sample(5, torch.Generator().manual_seed(0))
    sources = LogisticNormalPosterior(q.loc[:, :3], q.scale[:, :3], 3).log_prob(draws[..., :3])
    experts = LogisticNormalPosterior(q.loc[:, 3:], q.scale[:, 3:], 2).log_prob(draws[..., 3:])
    torch.testing.assert_close(q.log_prob(draws), sources + experts)


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_mean_by_monte_carlo(sources: int, experts: int) -> None:
    q = normal(sources, experts)
    draws = q.sample(100_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(q.mean, draws.mean(0), rtol=0, atol=6e-3)


def test_mean_leaves_the_global_generator_alone_and_has_a_gradient() -> None:
    loc = torch.zeros(1, 3, requires_grad=True)
    before = torch.get_rng_state()
    mean = LogisticNormalPosterior(loc, torch.ones(1, 3), 3).mean
    assert torch.equal(before, torch.get_rng_state())
    mean[0, 0].backward()
    assert loc.grad is not None
    assert loc.grad[0, 0] > 0.05
    torch.testing.assert_close(loc.grad.sum(), torch.tensor(0.0), rtol=0, atol=1e-6)


def test_draws_have_the_density_of_the_sites() -> None:
    """Contrasts of the drawn weights are Gaussian with the mean and covariance of the site."""
    q = normal(3, 0, episodes=1)
    draws = q.sample(200_000, torch.Generator().manual_seed(3))[:, 0]
    contrasts = draws.log() @ contrast_basis(3, draws)
    site = q.sites()["source_contrasts"]
    torch.testing.assert_close(contrasts.mean(0), site.mean[0, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(contrasts.T.cov(), site.covariance_matrix[0, 0], rtol=0.02, atol=0.01)


def test_mode_maximises_the_density_of_the_contrasts() -> None:
    q = normal(3, 2)
    at_mode = q.log_prob(q.mode)
    assert (q.log_prob(q.sample(500, torch.Generator().manual_seed(0))) <= at_mode + 1e-9).all()


# --- catalog ----------------------------------------------------------------------------------------------------------


def catalog_posterior(episodes: int = 3, seed: int = 0) -> tuple[CatalogPosterior, Catalog]:
    catalog = Catalog.k_hot(("a", "b", "c"), 2, max_sources=2)
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(episodes, len(catalog), generator=generator, dtype=torch.float64)
    return CatalogPosterior(logits, catalog, 3), catalog


def test_catalog_is_a_categorical() -> None:
    q, catalog = catalog_posterior()
    reference = Categorical(logits=q.logits)
    prior = CostAwareCatalogPrior(catalog, torch.arange(1.0, 6.0), 0.4).double()
    torch.testing.assert_close(q.kl(prior), kl_divergence(reference, Categorical(logits=prior.logits)))
    torch.testing.assert_close(q.entropy(), reference.entropy())
    torch.testing.assert_close(q.choice(), reference.probs)
    rows = torch.tensor([[0, 4, 2], [7, 11, 1]])
    torch.testing.assert_close(q.log_prob(q.coefficients[rows]), reference.log_prob(rows))
    expected = sum(reference.probs[:, j, None] * q.coefficients[j] for j in range(len(catalog)))
    torch.testing.assert_close(q.mean, expected)
    assert torch.equal(q.mode, q.coefficients[q.logits.argmax(-1)])
    assert (q.log_prob(torch.full((3, 5), 0.2, dtype=torch.float64)) == -math.inf).all()


def test_catalog_draws_have_the_probabilities() -> None:
    q, _ = catalog_posterior()
    draws = q.sample(20_000, torch.Generator().manual_seed(0))
    for j, row in enumerate(q.coefficients):
        share = (draws == row).all(-1).double().mean(0)
        torch.testing.assert_close(share, q.choice()[:, j], rtol=0, atol=0.02)


def test_catalog_with_a_repeated_row_adds_its_probabilities() -> None:
    catalog = Catalog(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), ("a", "b", "a again"))
    q = CatalogPosterior(torch.tensor([[0.1, 0.7, -0.4]]), catalog, 2)
    p = q.choice()[0]
    torch.testing.assert_close(q.log_prob(torch.tensor([[1.0, 0.0]])).exp()[0], p[0] + p[2])


@pytest.mark.parametrize("k", [1, 2, 5, 12, 50])
def test_catalog_top(k: int) -> None:
    q, catalog = catalog_posterior()
    coefficients, weights = q.top(k)
    assert coefficients.shape == (min(k, len(catalog)), 3, 5)
    torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=torch.float64))
    for i in range(3):
        order = sorted(range(len(catalog)), key=lambda j: -q.choice()[i, j].item())[:k]
        total = sum(q.choice()[i, j] for j in order)
        for slot, j in enumerate(order):
            assert torch.equal(coefficients[slot, i], q.coefficients[j])
            torch.testing.assert_close(weights[slot, i], q.choice()[i, j] / total)


# --- point ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_point_is_its_softmax(sources: int, experts: int) -> None:
    logits = torch.randn(2, sources + experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = PointPosterior(logits, sources)
    expected = torch.cat([logits[:, :sources].softmax(-1), logits[:, sources:].softmax(-1)], -1)
    torch.testing.assert_close(q.mean, expected)
    torch.testing.assert_close(q.mode, expected)
    torch.testing.assert_close(q.sample(3), expected.expand(3, -1, -1))
    assert (q.log_prob(expected) == 0).all()
    assert (q.uncertainty("variance") == 0).all()
    if sources > 1:
        assert (q.log_prob(expected.roll(1, -1)) == -math.inf).all()


@pytest.mark.parametrize(("sources", "experts"), [(2, 0), (3, 2), (1, 3)])
def test_point_kl_is_minus_the_log_prior_density(sources: int, experts: int) -> None:
    logits = torch.randn(2, sources + experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = prior_of(sources, experts)
    as_posterior = LogisticNormalPosterior(p.loc.expand(2, -1), p.scale.expand(2, -1), sources)
    q = PointPosterior(logits, sources)
    torch.testing.assert_close(q.kl(p), -as_posterior.log_prob(q.mean))


# --- the common interface ---------------------------------------------------------------------------------------------


def every_posterior(sources: int, experts: int) -> list[RoutingPosterior]:
    generator = torch.Generator().manual_seed(0)
    catalog = Catalog.k_hot(tuple("abcd"[:sources]), experts, max_sources=min(2, sources))
    logits = torch.randn(2, len(catalog), generator=generator, dtype=torch.float64)
    weights = torch.randn(2, sources + experts, generator=generator, dtype=torch.float64)
    return [
        normal(sources, experts),
        PointPosterior(weights, sources),
        CatalogPosterior(logits, catalog, sources),
    ]


@pytest.mark.parametrize(("sources", "experts"), SHAPES)
def test_interface(sources: int, experts: int) -> None:
    for q in every_posterior(sources, experts):
        size = sources + experts
        draws = q.sample(7, torch.Generator().manual_seed(5))
        assert draws.shape == (7, 2, size)
        assert q.mean.shape == q.mode.shape == (2, size)
        for c in (draws, q.mean, q.mode, *(q.top(k)[0] for k in (1, 2, 9))):
            assert (c >= 0).all()
            torch.testing.assert_close(c[..., :sources].sum(-1), torch.ones(c.shape[:-1], dtype=c.dtype))
            if experts:
                torch.testing.assert_close(c[..., sources:].sum(-1), torch.ones(c.shape[:-1], dtype=c.dtype))
        for k in (1, 2, 9):
            weights = q.top(k)[1]
            torch.testing.assert_close(weights.sum(0), torch.ones(2, dtype=weights.dtype))
        assert torch.equal(draws, q.sample(7, torch.Generator().manual_seed(5)))
        if not isinstance(q, PointPosterior) and max(sources, experts) > 1:
            assert not torch.equal(draws, q.sample(7, torch.Generator().manual_seed(6)))
        assert q.log_prob(draws).shape == (7, 2)
        assert q.log_prob(q.mode).shape == (2,)
        choice = q.choice()
        torch.testing.assert_close(choice.sum(-1), torch.ones(2, dtype=choice.dtype))
        prior: LogisticNormalPrior | CatalogPrior
        if isinstance(q, CatalogPosterior):
            prior = CatalogPrior(Catalog(q.coefficients, tuple(map(str, range(len(q.coefficients)))))).double()
        else:
            prior = prior_of(sources, experts)
        assert q.kl(prior).shape == (2,)
        kinds = [q.uncertainty(kind, prior) for kind in ("confidence", "entropy", "variance", "prior")]
        assert all(u.shape == (2,) and torch.isfinite(u).all() for u in kinds)
        torch.testing.assert_close(kinds[0], 1 - choice.max(-1).values)
        torch.testing.assert_close(kinds[1], -(choice * choice.clamp(min=1e-300).log()).sum(-1))
        torch.testing.assert_close(kinds[3], -q.kl(prior))


@pytest.mark.parametrize("k", [1, 2])
def test_top_keeps_the_largest_weights(k: int) -> None:
    q = normal(4, 3)
    (mixture,), weights = q.top(k)
    assert (weights == 1).all()
    for part in (slice(0, 4), slice(4, 7)):
        for i in range(2):
            mean = q.mean[i, part]
            kept = mean.argsort(descending=True)[:k]
            expected = torch.zeros_like(mean)
            expected[kept] = mean[kept] / mean[kept].sum()
            torch.testing.assert_close(mixture[i, part], expected)


def test_variance_is_that_of_the_draws() -> None:
    q, _ = catalog_posterior()
    probabilities = q.choice()
    spread = (q.coefficients - q.mean.unsqueeze(1)).square().sum(-1)
    exact = (probabilities * spread).sum(-1)
    found = torch.stack([q.uncertainty("variance", generator=torch.Generator().manual_seed(s)) for s in range(60)])
    torch.testing.assert_close(found.mean(0), exact, rtol=0.05, atol=0.005)
    again = q.uncertainty("variance", generator=torch.Generator().manual_seed(0))
    assert torch.equal(found[0], again)


def test_uncertainty_orders_sure_and_unsure() -> None:
    """A sharp posterior is surer than a flat one by every kind."""
    flat = CatalogPosterior(torch.zeros(1, 6), Catalog.k_hot(("a", "b", "c"), 0, 2), 3)
    sharp = CatalogPosterior(torch.tensor([[9.0, 0, 0, 0, 0, 0]]), Catalog.k_hot(("a", "b", "c"), 0, 2), 3)
    prior = CatalogPrior(Catalog.k_hot(("a", "b", "c"), 0, 2))
    for kind in ("confidence", "entropy", "variance", "prior"):
        generator = torch.Generator().manual_seed(0)
        assert sharp.uncertainty(kind, prior, generator) < flat.uncertainty(kind, prior, generator)


def test_error_messages() -> None:
    q, catalog = catalog_posterior()
    with pytest.raises(ValueError, match=r"uncertainty kind 'prior' is minus KL\(q \|\| prior\): pass the prior"):
        q.uncertainty("prior")
    with pytest.raises(ValueError, match="uncertainty kind is 'margin'; expected one of"):
        q.uncertainty("margin")  # type: ignore[arg-type]
    mismatches: list[tuple[RoutingPosterior, LogisticNormalPrior | CatalogPrior]] = [
        (q, prior_of(3, 2)),
        (normal(3, 2), CatalogPrior(catalog)),
        (PointPosterior(torch.zeros(1, 5), 3), CatalogPrior(catalog)),
        (normal(3, 2), prior_of(3, 0)),
        (PointPosterior(torch.zeros(1, 5), 3), prior_of(3, 0)),
        (PointPosterior(torch.zeros(1, 3), 3), prior_of(3, 2)),
    ]
    for posterior, prior in mismatches:
        with pytest.raises(ValueError, match=r"Posterior has sites .* expected a prior of the same family"):
            posterior.kl(prior)


def test_extreme_logits_stay_finite() -> None:
    """Nearly certain routers: nothing becomes NaN."""
    for make in extreme_posteriors():
        q = make()
        assert torch.isfinite(q.mean).all()
        assert torch.isfinite(q.entropy()).all()
        draws = q.sample(50, torch.Generator().manual_seed(0))
        assert torch.isfinite(draws).all()
        assert not torch.isnan(q.log_prob(draws)).any()


def extreme_posteriors() -> list[Callable[[], RoutingPosterior]]:
    loc = torch.tensor([[60.0, -60.0, 0.0, 40.0, -40.0]])
    catalog = Catalog.k_hot(("a", "b", "c"), 2, 1)
    return [
        lambda: LogisticNormalPosterior(loc, torch.full_like(loc, 1e-3), 3),
        lambda: LogisticNormalPosterior(loc, torch.full_like(loc, 8.0), 3),
        lambda: PointPosterior(loc, 3),
        lambda: CatalogPosterior(torch.tensor([[300.0, 0.0, -300.0, 1.0, 2.0, 3.0]]), catalog, 3),
    ]
