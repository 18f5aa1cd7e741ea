"""Another prior without retraining: Bayes' rule on FiniteRoutes, Gaussians on the simplex, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import arviz as az
import numpy as np
import pytest
import torch
from conftest import LAWS, PRIOR, sharpen

from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.power_scaling import catalog_power_scaling, power_scaling
from pyro_smat.inference.diagnostics.prior_swap import prior_path, swap_catalog_prior, swap_prior
from pyro_smat.models.finite_routes import FiniteRoutes
from pyro_smat.models.priors import CatalogPrior, CostAwareCatalogPrior, DirichletPrior, LogisticNormalPrior

OTHER = np.array([0.1, 0.1, 0.2, 0.6])


def test_a_catalog_swap_is_bayes_rule(world: FiniteRoutes) -> None:
    _, x = world.draw(200, 5, torch.Generator().manual_seed(0))
    exact = FiniteRoutes(torch.tensor(OTHER), LAWS).posterior(x).numpy()
    q = world.posterior(x).numpy()
    np.testing.assert_allclose(swap_catalog_prior(q, PRIOR.numpy(), OTHER), exact, atol=1e-12)
    biased = swap_catalog_prior(sharpen(q / PRIOR.numpy(), 1.0), PRIOR.numpy(), OTHER)  # q was never Bayes under PRIOR
    sharp = swap_catalog_prior(sharpen(q, 1.3), PRIOR.numpy(), OTHER)
    for wrong in (biased, sharp):  # what the swap starts from comes out again
        assert 0.5 * np.abs(wrong - exact).sum(1).mean() > 0.03


def test_a_fitted_temperature_is_not_applied_to_the_new_prior(make_router: Callable) -> None:
    router = make_router("catalog", sources=3, experts=0, beta=0.0)
    catalog = router.guide.catalog
    router.guide.temperature_scale.fill_(2.0)
    new = CostAwareCatalogPrior(catalog, torch.tensor([1.0, 2.0, 3.0]), beta=1.0).double()
    draws = RoutingDraws.collect(router.model, router.guide, [router.batch], num_samples=4)
    assert draws.probabilities is not None
    found = swap_prior(draws, new)
    expected = draws.probabilities * new.logits.exp().numpy()
    np.testing.assert_allclose(found.weights.T, expected / expected.sum(1, keepdims=True), rtol=1e-5)
    assert not found.refused.any()
    # Exchanging the guide's prior would divide the logarithm of the new prior by the temperature too.
    router.guide._prior = (new,)
    with torch.no_grad():
        inside = router.guide.eval().posterior(router.batch).logits.softmax(-1).numpy()
    assert np.abs(inside - found.weights.T).max() > 0.05


def test_the_predictive_density_is_the_exact_mixture(make_router: Callable) -> None:
    router = make_router("catalog", sources=3, experts=0)
    draws = RoutingDraws.collect(router.model, router.guide, [router.batch], num_samples=4)
    same = swap_prior(draws, router.model.prior)
    assert draws.probabilities is not None
    assert draws.routing_log_likelihood is not None
    np.testing.assert_allclose(same.weights.T, draws.probabilities, rtol=1e-5)
    mixed = np.log(np.einsum("bj,jbq->bq", draws.probabilities, np.exp(np.nan_to_num(draws.routing_log_likelihood))))
    np.testing.assert_allclose(same.log_predictive, np.where(draws.labels >= 0, mixed, 0).sum(1), rtol=1e-5)


def test_on_the_simplex_importance_weights_reach_a_near_prior_and_refuse_a_far_one(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=3, experts=0)
    draws = RoutingDraws.collect(router.model, router.guide, [router.batch], num_samples=4000)
    # Both posterior and priors are Gaussian in the coordinates: q' = q p' / p is Gaussian too.
    near = LogisticNormalPrior(3, 0, loc=torch.tensor([0.3, 0.1, -0.4], dtype=torch.float64), scale=1.9).double()
    found = swap_prior(draws, near)
    assert not found.refused.any()
    with torch.no_grad():
        site = router.guide.eval().posterior(router.batch).sites()["source_ilr"]
        old = router.model.prior.distribution("source_ilr", {})
        new = near.distribution("source_ilr", {})
        precision = site.covariance_matrix.inverse() + new.covariance_matrix.inverse() - old.covariance_matrix.inverse()
        linear = sum(
            sign * (d.covariance_matrix.inverse() @ d.loc.unsqueeze(-1)).squeeze(-1)
            for sign, d in ((1, site), (1, new), (-1, old))
        )
        mean = (precision.inverse() @ linear.unsqueeze(-1)).squeeze(-1).squeeze(1)
    drawn = draws.latents["source_ilr"][:, :, 0]
    np.testing.assert_allclose(np.einsum("kb,kbd->bd", found.weights, drawn), mean, atol=0.08)
    far = LogisticNormalPrior(3, 0, loc=torch.tensor([12.0, -6.0, -6.0], dtype=torch.float64), scale=0.3).double()
    refused = swap_prior(draws, far)
    assert refused.refused.all()
    assert np.isnan(refused.mean).all()
    assert np.isnan(refused.log_predictive).all()


def test_a_path_of_cost_aware_priors(make_router: Callable) -> None:
    router = make_router("catalog", sources=3, experts=0, beta=0.0)
    draws = RoutingDraws.collect(router.model, router.guide, [router.batch], num_samples=4)
    costs = torch.tensor([0.0, 1.0, 4.0])
    new = CostAwareCatalogPrior(router.guide.catalog, costs, beta=0.7)
    path = prior_path(draws, new.costs_of_routings.numpy(), [0.0, 0.7, 3.0, 50.0])
    assert (np.diff(path.cost) < 0).all()
    assert path.cost[-1] == pytest.approx(0.0, abs=1e-6)
    swapped = swap_prior(draws, new.double())
    assert path.cost[1] == pytest.approx((swapped.weights.T @ new.costs_of_routings.numpy()).mean(), rel=1e-5)
    queries = (draws.labels >= 0).sum(1)
    assert path.loss[1] == pytest.approx((-swapped.log_predictive / queries).mean(), rel=1e-5)
    simplex = make_router("dirichlet", sources=3, experts=0)
    drawn = RoutingDraws.collect(simplex.model, simplex.guide, [simplex.batch], num_samples=1000)
    found = prior_path(drawn, costs.numpy(), [0.0, 0.2, 200.0])
    assert found.cost[1] < found.cost[0]
    assert found.refused[0] == 0
    assert found.refused[2] > 0


def test_power_scaling_of_a_catalog_is_its_closed_form(world: FiniteRoutes) -> None:
    _, x = world.draw(50, 3, torch.Generator().manual_seed(0))
    q, log_p = world.posterior(x).numpy(), PRIOR.log().numpy()
    spread = np.sqrt((q * log_p**2).sum(1) - (q @ log_p) ** 2)
    found = catalog_power_scaling(q, PRIOR.numpy())
    np.testing.assert_allclose(found.sensitivity, np.sqrt(np.log(2) / 8) * spread, rtol=1e-3)
    assert (catalog_power_scaling(q, np.full(4, 0.25)).sensitivity < 1e-6).all()


def test_power_scaling_of_draws_is_psense_one_episode_at_a_time() -> None:
    rng = np.random.default_rng(0)
    values = np.array([0.3, 1.0])[None, :, None] * rng.standard_normal((1000, 2, 1)) + 0.7
    log_prior = -0.5 * values[..., 0] ** 2
    found = power_scaling(values, log_prior)
    for b in range(2):
        tree = az.from_dict(
            {"posterior": {"x": values[None, :, b, 0]}, "log_prior": {"x": log_prior[None, :, b]}},
        )
        assert found.sensitivity[b, 0] == pytest.approx(float(az.psense(tree)["x"]), rel=0.05)
    assert found.sensitivity[0, 0] < found.sensitivity[1, 0]
    assert (power_scaling(values, np.zeros((1000, 2))).sensitivity == 0).all()
    heavy = rng.standard_t(1, (1000, 2)) ** 3
    assert power_scaling(values, heavy).refused.any()


def test_refused(make_router: Callable) -> None:
    with pytest.raises(ValueError, match="allows routings \\[1\\]"):
        swap_catalog_prior(np.array([[1.0, 0.0]]), np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    catalog = make_router("catalog", sources=3, experts=0)
    draws = RoutingDraws.collect(catalog.model, catalog.guide, [catalog.batch], num_samples=4)
    with pytest.raises(ValueError, match="expected \\['routing'\\]"):
        swap_prior(draws, DirichletPrior(3, 0))
    with pytest.raises(ValueError, match="one catalog"):
        swap_prior(
            draws, CatalogPrior(replace(catalog.guide.catalog, names=tuple("abcdef")[:3], coefficients=torch.eye(3)))
        )
    point = make_router("point", sources=3, experts=0)
    drawn = RoutingDraws.collect(point.model, point.guide, [point.batch], num_samples=4)
    with pytest.raises(ValueError, match="point posterior"):
        swap_prior(drawn, LogisticNormalPrior(3, 0).double())
    with pytest.raises(ValueError, match="expected \\(3,\\)"):
        prior_path(drawn, np.ones(5), [0.0])
    with pytest.raises(ValueError, match="holds NaN"):
        power_scaling(np.zeros((5, 2, 1)), np.full((5, 2), np.nan))
