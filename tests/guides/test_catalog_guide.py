"""Catalog posteriors are categoricals; the guide's four estimators against exact enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from small_posteriors import random_posterior, small_catalog
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from pyro_smat.encoders import EvidenceEncoder
from pyro_smat.guides import CatalogGuide, CatalogPosterior
from pyro_smat.guides.catalog import ESTIMATORS
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.priors import CatalogPrior, CostAwareCatalogPrior
from pyro_smat.routing import CATALOG_SITE, Catalog
from pyro_smat.routing.distributions.catalog import CatalogCategorical, RelaxedCatalog

TINY = Catalog.k_hot(("a", "b"), max_sources=2)


def catalog_posterior() -> tuple[CatalogPosterior, Catalog]:
    q = random_posterior("catalog", 3, 2, episodes=3)
    assert isinstance(q, CatalogPosterior)
    return q, small_catalog(3, 2)


# --- the posterior ----------------------------------------------------------------------------------------------------


def test_catalog_is_a_categorical() -> None:
    q, catalog = catalog_posterior()
    reference = Categorical(logits=q.logits)
    prior = CostAwareCatalogPrior(catalog, torch.arange(1.0, 6.0), beta=0.4).double()
    torch.testing.assert_close(q.kl(prior), kl_divergence(reference, Categorical(logits=prior.logits)))
    torch.testing.assert_close(q.entropy(), reference.entropy())
    torch.testing.assert_close(q.routing_probabilities(), reference.probs)
    rows = torch.tensor([[0, 4, 2], [7, 11, 1]])
    torch.testing.assert_close(q.log_prob(q.coefficients[rows]), reference.log_prob(rows))
    expected = sum(reference.probs[:, j, None] * q.coefficients[j] for j in range(len(catalog)))
    torch.testing.assert_close(q.mean, expected)
    assert torch.equal(q.mode, q.coefficients[q.logits.argmax(-1)])
    assert (q.log_prob(torch.full((3, 5), 0.2, dtype=torch.float64)) == -math.inf).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_draws_have_the_probabilities(blocks: int) -> None:
    q = random_posterior("catalog", 3, 2, blocks)
    assert isinstance(q, CatalogPosterior)
    draws = q.sample(20_000, torch.Generator().manual_seed(0)).flatten(2)
    for j, row in enumerate(q.coefficients.flatten(1)):
        share = (draws == row).all(-1).double().mean(0)
        torch.testing.assert_close(share, q.routing_probabilities()[:, j], rtol=0, atol=0.02)


def test_a_repeated_row_adds_its_probabilities() -> None:
    catalog = Catalog(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), ("a", "b", "a again"))
    q = CatalogPosterior(torch.tensor([[0.1, 0.7, -0.4]]), catalog, num_sources=2)
    p = q.routing_probabilities()[0]
    torch.testing.assert_close(q.log_prob(torch.tensor([[1.0, 0.0]])).exp()[0], p[0] + p[2])


@pytest.mark.parametrize("k", [1, 2, 5, 12, 50])
def test_top(k: int) -> None:
    q, catalog = catalog_posterior()
    coefficients, weights = q.top(k)
    assert coefficients.shape == (min(k, len(catalog)), 3, 5)
    torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=torch.float64))
    for i in range(3):
        order = sorted(range(len(catalog)), key=lambda j: -q.routing_probabilities()[i, j].item())[:k]
        total = sum(q.routing_probabilities()[i, j] for j in order)
        for slot, j in enumerate(order):
            assert torch.equal(coefficients[slot, i], q.coefficients[j])
            torch.testing.assert_close(weights[slot, i], q.routing_probabilities()[i, j] / total)


def test_kl_to_a_steep_prior_in_float32() -> None:
    """exp(-beta cost) rounds to 0 long before its logarithm does; a posterior there has a large KL, not an infinite."""
    catalog = Catalog.k_hot(("a", "b", "c"))
    prior = CostAwareCatalogPrior(catalog, torch.tensor([0.0, 2.0, 5.0]), beta=50.0)
    logits = torch.tensor([[0.3, 0.1, -0.2]], requires_grad=True)
    kl = CatalogPosterior(logits, catalog, num_sources=3).kl(prior)
    p = logits.detach()[0].double().softmax(-1)
    expected = (p * (p.log() + 50.0 * torch.tensor([0.0, 2.0, 5.0]).double())).sum()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_kl_with_a_forbidden_routing() -> None:
    """Infinite where the posterior has mass on it, and only there."""
    prior = CatalogPrior(TINY, logits=torch.tensor([0.0, -math.inf, 0.0]))
    logits = torch.tensor([[0.0, -math.inf, 1.0], [0.0, -3.0, 1.0]], requires_grad=True)
    kl = CatalogPosterior(logits, TINY, num_sources=2).kl(prior)
    reference = kl_divergence(Categorical(logits=torch.tensor([0.0, 1.0])), Categorical(logits=torch.zeros(2)))
    torch.testing.assert_close(kl[0], reference)
    assert kl[1] == math.inf
    (gradient,) = torch.autograd.grad(kl[0], logits)
    assert torch.isfinite(gradient[0]).all()


# --- relaxed draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_relaxed_draws_choose_rows_with_their_probabilities(temperature: float) -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    soft = RelaxedCatalog(logits, temperature).rsample((40_000,))
    torch.testing.assert_close(soft.sum(-1), torch.ones(40_000, dtype=torch.float64))
    shares = torch.nn.functional.one_hot(soft.argmax(-1)).double().mean(0)
    torch.testing.assert_close(shares, logits.softmax(-1), rtol=0, atol=0.01)
    torch.manual_seed(0)
    hard = RelaxedCatalog(logits, temperature, hard=True).rsample((40_000,))
    assert torch.equal(hard.round().argmax(-1), soft.argmax(-1))
    assert (hard - hard.round()).abs().max() < 1e-12


def test_straight_through_draws_have_the_gradient_of_the_soft_ones() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gradients = []
    for hard in (False, True):
        torch.manual_seed(0)
        drawn = RelaxedCatalog(logits, 0.5, hard).rsample((100,))
        gradients.append(torch.autograd.grad((drawn @ weight).sum(), logits)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hard", [False, True])
def test_relaxed_entropy_is_that_of_the_categorical(hard: bool) -> None:
    logits = torch.tensor([[0.3, -1.0, 1.2], [4.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found, expected = RelaxedCatalog(logits, 0.5, hard).entropy(), Categorical(logits=logits).entropy()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(entropy.sum(), logits)[0] for entropy in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_log_mass_is_linear_in_relaxed_values() -> None:
    logits = torch.tensor([0.3, -1.0, -math.inf], dtype=torch.float64)
    p = CatalogCategorical(logits)
    rows = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(rows), logits.log_softmax(-1))
    torch.testing.assert_close(
        p.log_prob(0.3 * rows[0] + 0.7 * rows[1]), 0.3 * p.log_prob(rows[0]) + 0.7 * p.log_prob(rows[1])
    )


# --- estimators -------------------------------------------------------------------------------------------------------


def tiny(make_router: Callable, estimator: str, family: str = "catalog") -> Any:
    """Two sources, three routings; masks deterministic, the guide in training mode.

    The sources are moved towards each other, as checkpoints of one backbone are: gradients at mixtures (Gumbel-softmax)
    and at single rows (straight-through) say little about other rows where the loss is far from linear in between.
    """
    router = make_router(family, 2, 0, guide_options={"estimator": estimator, "temperature": 0.5})
    router.model.eval()
    centre = router.model.source_basis.mean(0)
    router.model.source_basis.copy_(centre + 0.2 * (router.model.source_basis - centre))
    return router


def exact_losses(router: Any) -> Tensor:
    """E_q[summed NLL] ``(B,)`` by a loop over the routings."""
    q = router.guide.posterior(router.batch)
    total = torch.zeros(len(router.batch), dtype=torch.float64)
    for j, row in enumerate(q.coefficients):
        logits = router.model.logits(row.expand(len(router.batch), *row.shape), router.batch)
        nll = -Categorical(logits=logits).log_prob(router.batch.query.labels) * router.batch.query.mask
        total = total + q.routing_probabilities()[:, j] * nll.sum(-1)
    return total


def gradient(router: Any, elbo: CVaR_ELBO) -> Tensor:
    loss = elbo.differentiable_loss(router.model, router.guide, router.batch)
    parameters = list(router.guide.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, grads, strict=True)]
    )


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("family", ["catalog", "hierarchical"])
def test_enumeration_is_the_sum_over_routings(family: str, blocks: int, make_router: Callable) -> None:
    router = make_router(family, blocks=blocks)
    router.model.eval()
    terms = CVaR_ELBO(rho=1.0).terms(router.model, router.guide, router.batch)
    torch.testing.assert_close(terms.episode_losses, exact_losses(router))
    torch.testing.assert_close(terms.episode_kl, router.guide.posterior(router.batch).kl(router.model.prior))


def test_the_score_function_is_unbiased(make_router: Callable) -> None:
    exact = gradient(tiny(make_router, "enumerate"), CVaR_ELBO(rho=1.0))
    router = tiny(make_router, "score_function")
    pyro.set_rng_seed(0)
    settings: dict[str, Any] = {"num_particles": 500, "vectorize_particles": True, "max_plate_nesting": 2}
    elbo = CVaR_ELBO(rho=1.0, baseline="leave_one_out", **settings)
    found = torch.stack([gradient(router, elbo) for _ in range(20)])
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exact).abs() < 5 * error + 1e-9).all()
    assert error.norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "straight_through"])
def test_relaxed_gradients_point_the_same_way(estimator: str, make_router: Callable) -> None:
    exact = gradient(tiny(make_router, "enumerate"), CVaR_ELBO(rho=1.0))
    router = tiny(make_router, estimator)
    pyro.set_rng_seed(0)
    elbo = CVaR_ELBO(rho=1.0, num_particles=2000, vectorize_particles=True, max_plate_nesting=2)
    cosine = torch.cosine_similarity(gradient(router, elbo), exact, dim=0)
    assert cosine > 0.7


def test_the_relaxed_kl_is_that_of_the_categorical(make_router: Callable) -> None:
    for estimator in ESTIMATORS:
        router = tiny(make_router, estimator)
        pyro.set_rng_seed(0)
        terms = CVaR_ELBO(rho=1.0, max_plate_nesting=2).terms(router.model, router.guide, router.batch)
        torch.testing.assert_close(terms.episode_kl, router.guide.posterior(router.batch).kl(router.model.prior))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_evaluation_is_exact(estimator: str, make_router: Callable) -> None:
    router = tiny(make_router, estimator)
    router.guide.eval()
    loss = CVaR_ELBO(rho=1.0).terms(router.model, router.guide, router.batch).episode_losses
    torch.testing.assert_close(loss, exact_losses(router))
    sites = router.guide.sites(router.guide.posterior(router.batch))
    assert type(sites[CATALOG_SITE]) is CatalogCategorical


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", ["catalog", "hierarchical"])
def test_training_lowers_the_exact_loss(family: str, estimator: str, make_router: Callable) -> None:
    router = tiny(make_router, estimator, family)
    before = exact_losses(router).sum().item()
    optimizer = torch.optim.Adam(router.guide.parameters(), 0.02)
    baseline = "leave_one_out" if estimator == "score_function" else "none"
    count = 1 if estimator == "enumerate" else 16
    elbo = CVaR_ELBO(
        rho=1.0, kl_weight=0.1, num_particles=count, vectorize_particles=True, max_plate_nesting=2, baseline=baseline
    )
    pyro.set_rng_seed(0)
    for _ in range(15):
        optimizer.zero_grad()
        elbo.loss_and_grads(router.model, router.guide, router.batch)
        optimizer.step()
    assert exact_losses(router).sum().item() < before - 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_extreme_logits_in_float32(estimator: str, make_router: Callable) -> None:
    router = make_router("catalog", dtype=torch.float32, guide_options={"estimator": estimator, "temperature": 0.05})
    with torch.no_grad():
        router.guide.score[-1].weight.mul_(3000.0)
    assert router.guide.posterior(router.batch).logits.std() > 100
    pyro.set_rng_seed(0)
    loss = CVaR_ELBO(rho=1.0, max_plate_nesting=2).loss_and_grads(router.model, router.guide, router.batch)
    assert math.isfinite(loss)
    for name, parameter in router.guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# --- large catalogs ---------------------------------------------------------------------------------------------------


def large_catalog() -> Catalog:
    return Catalog.k_hot(tuple(f"s{r}" for r in range(23)), 0, 2, limit=1000)


@pytest.mark.parametrize("estimator", ["gumbel_softmax", "straight_through", "score_function"])
def test_large_catalogs_are_never_enumerated(estimator: str) -> None:
    guide = CatalogGuide(large_catalog(), 23, encoder=EvidenceEncoder(8), estimator=estimator)  # type: ignore[arg-type]
    assert len(guide.catalog) == 276
    assert guide.train().infer == guide.eval().infer == {}
    small = CatalogGuide(TINY, 2, encoder=EvidenceEncoder(8), estimator=estimator)  # type: ignore[arg-type]
    assert small.train().infer == {}
    assert small.eval().infer == {"enumerate": "parallel"}


def test_refused() -> None:
    with pytest.raises(ValueError, match="276 routings; exact enumeration takes at most 256: use a smaller catalog"):
        CatalogGuide(large_catalog(), 23)
    with pytest.raises(ValueError, match="estimator is 'reinforce'; expected one of"):
        CatalogGuide(TINY, 2, estimator="reinforce")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature is 0; expected > 0"):
        CatalogGuide(TINY, 2, temperature=0)
