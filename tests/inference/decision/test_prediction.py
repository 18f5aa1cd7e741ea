"""Predictions by decision rules against explicit loops over routings and episodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_smat.inference.decision import predict
from pyro_smat.inference.decision.prediction import as_rule
from pyro_smat.registry import names

FAMILIES = ("logistic_normal", "catalog", "hierarchical", "concrete", "dirichlet", "point")


def network_probabilities(router, coefficients: Tensor, i: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Softmax of the deployed network with these coefficients on episode i, ``(queries, way)``, by hand."""
    batch, model = router.batch, router.model
    theta = coefficients @ torch.cat([router.library.basis, model.experts.masks() * model.experts.delta])
    weight, bias = theta[:20].view(5, 4), theta[20:]

    def features(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ weight.T + bias)

    shots = batch.support.mask[i]
    support, labels = features(batch.support.images[i][shots]), batch.support.labels[i][shots]
    centres = torch.stack([support[labels == k].mean(0) for k in range(int(batch.way[i]))])
    queries = features(batch.query.images[i][batch.query.mask[i]])
    return (model.scale * torch.cosine_similarity(queries[:, None], centres[None], dim=-1)).softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", names("decision_rule"))
def test_rules_by_loop(family: str, name: str, make_router: Callable) -> None:
    router = make_router(family)
    router.model.eval()
    posterior = router.guide.posterior(router.batch)
    rule = as_rule({"kind": name, "num_samples": 5} if name == "posterior_predictive" else name, router.model)
    mixture = rule(posterior, generator=torch.Generator().manual_seed(1))
    coefficients, weights = mixture.coefficients, mixture.weights
    assert coefficients.shape[1:] == (4, 5)
    assert weights.shape == coefficients.shape[:2]
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
    torch.testing.assert_close(coefficients[..., :3].sum(-1), torch.ones_like(weights))
    found = predict(router.model, posterior, router.batch, rule, generator=torch.Generator().manual_seed(1))
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    for i in range(4):
        way, queries = int(router.batch.way[i]), int(router.batch.query.mask[i].sum())
        expected = sum(
            weights[k, i] * network_probabilities(router, coefficients[k, i], i) for k in range(len(coefficients))
        )
        torch.testing.assert_close(found[i, :queries, :way], expected)
        assert (found[i, :, way:] == 0).all()


def test_the_posterior_predictive_of_a_catalog_tends_to_the_exact_mixture(make_router: Callable) -> None:
    """top-k with all J routings is the exact posterior predictive; many draws come near it."""
    router = make_router("catalog")
    router.model.eval()
    posterior = router.guide.posterior(router.batch)
    exact = predict(router.model, posterior, router.batch, {"kind": "top-k", "k": 10_000})
    generator = torch.Generator().manual_seed(0)
    many = posterior.sample(4000, generator)
    shares = (many == posterior.coefficients[:, None, None]).all(-1).double().mean(1).T  # (B, J)
    drawn = sum(
        shares[:, j, None, None] * router.model.logits(row.expand(4, -1), router.batch).softmax(-1)
        for j, row in enumerate(posterior.coefficients)
    )
    assert (exact - drawn).abs().max() < 0.04
    by_hand = sum(
        posterior.routing_probabilities()[:, j, None, None]
        * router.model.logits(row.expand(4, -1), router.batch).softmax(-1)
        for j, row in enumerate(posterior.coefficients)
    )
    torch.testing.assert_close(exact, by_hand)


def test_fallback_is_source_zero(make_router: Callable) -> None:
    router = make_router()
    router.model.eval()
    found = predict(router.model, router.guide.posterior(router.batch), router.batch, "fallback")
    alone = router.model.logits(router.library.one_hot(0, 2).double().expand(4, -1), router.batch)
    assert torch.equal(found, alone.softmax(-1))


@pytest.mark.parametrize("rule", ["mean", "ensemble"])
def test_gate_samples_are_averaged_after_the_softmax(rule: str, make_router: Callable) -> None:
    router = make_router()
    router.model.eval()
    posterior = router.guide.posterior(router.batch)
    bases = router.model.basis(3, torch.Generator().manual_seed(0))
    assert not torch.equal(bases[0].matrix(), bases[1].matrix())

    def of(basis: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return predict(router.model, posterior, router.batch, rule, basis=basis, generator=generator)

    torch.testing.assert_close(of(bases), torch.stack([of(basis) for basis in bases]).mean(0))
