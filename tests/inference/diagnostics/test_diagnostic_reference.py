"""Reference posteriors against each other and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_smat.inference.diagnostics.reference import (
    effective_draws,
    enumerated_posterior,
    importance_posterior,
    nuts_posterior,
)
from pyro_smat.inference.objective.candidates import support_candidate_losses
from pyro_smat.models.priors import CatalogPrior


def test_enumeration_is_bayes_rule_by_hand(make_router: Callable) -> None:
    router = make_router("catalog", sources=3, experts=0)
    catalog, batch, model = router.guide.catalog, router.batch, router.model.eval()
    losses = support_candidate_losses(model, batch, catalog.coefficients.double())
    prior = model.prior.logits
    for reference in ("support", "model"):
        found = enumerated_posterior(model, batch, reference, kl_weight=0.5)
        for i in range(len(batch)):
            scores = []
            for j, row in enumerate(catalog.coefficients.double()):
                if reference == "support":
                    scores.append(prior[j] - 2 * batch.support.mask[i].sum() * losses[j, i])
                    continue
                one = batch[i : i + 1]
                with torch.no_grad():
                    log_p = model.logits(row.expand(1, -1), one).log_softmax(-1)
                own = log_p.gather(-1, one.query.labels.unsqueeze(-1)).squeeze(-1)
                scores.append(prior[j] + 2 * own[one.query.mask].sum())
            np.testing.assert_allclose(found.weights[i], torch.stack(scores).softmax(0).detach(), rtol=1e-4)
        assert found.reference == reference
        assert found.method == "enumeration"
        assert found.reliable.all()
    assert "noise" in enumerated_posterior(model, batch, "support").cannot_judge


def test_importance_agrees_with_a_grid(make_router: Callable) -> None:
    """Two sources have one coordinate: the posterior on a fine grid of it is as good as exact."""
    router = make_router("logistic_normal", sources=2, experts=0)
    one = router.batch[:1]
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    drawn = {"source_ilr": grid}
    prior, model = router.model.prior, router.model.eval()
    with torch.no_grad():
        rows = prior.coefficients_of(drawn)[:, 0, 0]
        log_p = model.logits(rows.unsqueeze(1), one).log_softmax(-1)
        own = log_p.gather(-1, one.query.labels.expand(len(grid), -1, -1).unsqueeze(-1)).squeeze(-1)
        density = (prior.log_prob(drawn).squeeze(-1)[:, 0] + (own * one.query.mask).sum((-1, -2))).softmax(0)
        exact = (density.unsqueeze(-1) * rows).sum(0).numpy()
    found = importance_posterior(model, router.guide, one, num_samples=4000)
    np.testing.assert_allclose(found.mean[0], exact, atol=0.02)
    assert found.reliable.all()
    assert effective_draws(found)[0] > 200


@pytest.mark.filterwarnings("ignore")  # NUTS warns of steps it rejects while it warms up
def test_nuts_agrees_with_importance(make_router: Callable) -> None:
    router = make_router("logistic_normal", sources=2, experts=0)
    one = router.batch[1:2]
    training = router.model.training
    state = torch.get_rng_state()
    chains = nuts_posterior(router.model, one, num_samples=60, warmup=40, chains=2)
    assert router.model.training == training
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in router.model.parameters())
    found = importance_posterior(router.model, router.guide, one, num_samples=4000)
    np.testing.assert_allclose(chains.mean, found.mean, atol=0.1)
    assert chains.rhat < 1.3
    assert chains.method == "NUTS"


def test_the_support_reference_ignores_queries(make_router: Callable) -> None:
    router = make_router("dirichlet", sources=3, experts=0)
    first = importance_posterior(router.model, router.guide, router.batch[:1], "support", num_samples=300)
    one = router.batch[:1]
    other = replace(one, query=replace(one.query, labels=torch.zeros_like(one.query.labels)))
    again = importance_posterior(router.model, router.guide, other, "support", num_samples=300)
    np.testing.assert_allclose(first.weights, again.weights)


def test_refused(make_router: Callable) -> None:
    simplex, catalog = make_router("dirichlet", sources=3, experts=0), make_router("catalog", sources=3, experts=0)
    point = make_router("point", sources=3, experts=0)
    with pytest.raises(ValueError, match="got 4 episodes"):
        importance_posterior(simplex.model, simplex.guide, simplex.batch)
    with pytest.raises(ValueError, match="got 4 episodes"):
        nuts_posterior(simplex.model, simplex.batch)
    with pytest.raises(ValueError, match="a catalog is enumerated"):
        importance_posterior(catalog.model, catalog.guide, catalog.batch[:1])
    with pytest.raises(ValueError, match="a catalog is enumerated"):
        importance_posterior(point.model, point.guide, point.batch[:1])
    with pytest.raises(ValueError, match="a catalog is discrete"):
        nuts_posterior(catalog.model, catalog.batch[:1])
    with pytest.raises(ValueError, match="no prior over a catalog"):
        enumerated_posterior(simplex.model, simplex.batch)
    with pytest.raises(ValueError, match="expected one of"):
        enumerated_posterior(catalog.model, catalog.batch, "route")  # type: ignore[arg-type]
    many = make_router("catalog", sources=3, experts=0)
    rows = many.guide.catalog.coefficients.repeat(100, 1)
    with pytest.raises(ValueError, match="at most 256"):
        enumerated_posterior(many.model, many.batch, coefficients=rows)
    assert isinstance(many.model.prior, CatalogPrior)
