"""Candidate losses against loops over routings and episodes that use nothing but linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.inference.objective.candidates import (
    as_deployed,
    candidate_log_likelihoods,
    candidate_losses,
    support_candidate_losses,
)
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import LogisticNormalPrior
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary


def routings_of(router) -> Tensor:  # type: ignore[no-untyped-def]
    """Seven mixtures of 3 sources and 2 experts, some of them off the catalog."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.rand(7, n, generator=generator, dtype=torch.float64) for n in (3, 2)]
    return torch.cat([part / part.sum(-1, keepdim=True) for part in parts], dim=-1)


def tanh_features(theta: Tensor, images: Tensor) -> Tensor:
    return torch.tanh(images.flatten(1) @ theta[:20].view(5, 4).T + theta[20:])


def loop_log_likelihood(router, theta: Tensor, i: int) -> Tensor:  # type: ignore[no-untyped-def]
    batch = router.batch
    shots, queries = batch.support.mask[i], batch.query.mask[i]
    support, labels = tanh_features(theta, batch.support.images[i][shots]), batch.support.labels[i][shots]
    centres = torch.stack([support[labels == k].mean(0) for k in range(int(batch.way[i]))])
    similar = F.cosine_similarity(tanh_features(theta, batch.query.images[i][queries])[:, None], centres[None], dim=-1)
    return -F.cross_entropy(router.model.scale * similar, batch.query.labels[i][queries], reduction="none").detach()


def loop_support_loss(router, theta: Tensor, i: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Every shot against prototypes of the others; alone in its class, against the mean of all shots."""
    shots = router.batch.support.mask[i]
    features, labels = (
        tanh_features(theta, router.batch.support.images[i][shots]),
        router.batch.support.labels[i][shots],
    )
    losses = []
    for j in range(len(labels)):
        others = torch.arange(len(labels)) != j
        centres = []
        for k in range(int(router.batch.way[i])):
            members = features[others & (labels == k)]
            centres.append(members.mean(0) if len(members) else features.mean(0))
        logits = router.model.scale * F.cosine_similarity(features[j], torch.stack(centres), dim=-1)
        losses.append(F.cross_entropy(logits, labels[j]))
    return torch.stack(losses).mean().detach()


def deployed_basis(router) -> Tensor:  # type: ignore[no-untyped-def]
    experts = router.model.experts
    return torch.cat([router.library.basis, experts.masks() * experts.delta]).detach()


def test_query_losses_by_loop(make_router: Callable) -> None:
    router = make_router()
    coefficients = routings_of(router)
    found = candidate_log_likelihoods(router.model, router.batch, coefficients)
    means = candidate_losses(router.model, router.batch, coefficients)
    assert found.shape == (7, 4, router.batch.query.labels.shape[1])
    assert means.shape == (7, 4)
    assert not means.requires_grad
    for j, theta in enumerate(coefficients @ deployed_basis(router)):
        for i in range(4):
            expected = loop_log_likelihood(router, theta, i)
            torch.testing.assert_close(found[j, i][router.batch.query.mask[i]], expected)
            torch.testing.assert_close(means[j, i], -expected.mean())


def test_support_losses_by_loop(make_router: Callable) -> None:
    """The second episode has one shot a class; the head has learned a scale of its own."""
    router = make_router()
    with torch.no_grad():
        router.model.raw_scale.fill_(4.0)
    coefficients = routings_of(router)
    found = support_candidate_losses(router.model, router.batch, coefficients)
    assert found.shape == (7, 4)
    assert not found.requires_grad
    for j, theta in enumerate(coefficients @ deployed_basis(router)):
        for i in range(4):
            torch.testing.assert_close(found[j, i], loop_support_loss(router, theta, i))


def test_support_losses_of_single_sources_are_the_strong_baseline(make_router: Callable) -> None:
    router = make_router(experts=0)
    found = support_candidate_losses(router.model, router.batch, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found.T, support_losses(router.batch))


def test_support_losses_do_not_see_the_queries(make_router: Callable) -> None:
    router = make_router()
    blind = replace(router.batch, query=replace(router.batch.query, images=torch.zeros_like(router.batch.query.images)))
    found = [support_candidate_losses(router.model, b, routings_of(router)) for b in (router.batch, blind)]
    assert torch.equal(*found)


@pytest.mark.parametrize("evaluate", [candidate_losses, candidate_log_likelihoods, support_candidate_losses])
def test_chunks_and_a_given_basis_change_nothing(evaluate: Callable, make_router: Callable) -> None:
    router = make_router()
    coefficients = routings_of(router)
    whole = evaluate(router.model, router.batch, coefficients)
    for chunk in (1, 3, 100):
        torch.testing.assert_close(evaluate(router.model, router.batch, coefficients, chunk), whole)
    doubled = evaluate(router.model, router.batch, coefficients, basis=2 * deployed_basis(router))
    assert not torch.allclose(doubled, whole)


def test_the_default_chunk_fits_the_memory(make_router: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router()
    sizes = []
    logits = router.model.logits

    def watched(coefficients: Tensor, *arguments: object) -> Tensor:
        sizes.append(len(coefficients))
        return logits(coefficients, *arguments)

    monkeypatch.setattr(router.model, "logits", watched)
    images = router.batch.support.images.shape[1] + router.batch.query.images.shape[1]
    per_routing = 8 * (25 + 4 * 4 * images)  # bytes x (weights + pixels of 4 episodes)
    monkeypatch.setattr("pyro_smat.inference.objective.candidates.CHUNK_BYTES", 4 * per_routing - 1)
    candidate_losses(router.model, router.batch, routings_of(router))
    assert sizes == [3, 3, 1]
    monkeypatch.setattr("pyro_smat.inference.objective.candidates.CHUNK_BYTES", 1)
    assert candidate_losses(router.model, router.batch, routings_of(router)).shape == (7, 4)


def test_the_model_runs_as_deployed_and_keeps_its_mode(make_router: Callable) -> None:
    """Gates are sampled in training mode: losses that do not move come from the deployed masks."""
    model, batch = (router := make_router()).model, router.batch
    model.train()
    model.experts.eval()
    first, second = (candidate_losses(model, batch, routings_of(router)) for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert not model.experts.training
    with as_deployed(model, router.guide):
        assert not any(part.training for module in (model, router.guide) for part in module.modules())
        assert not torch.is_grad_enabled()
    assert model.training
    assert not model.experts.training
    assert router.guide.training
    assert torch.is_grad_enabled()


def test_the_mode_survives_an_error(make_router: Callable) -> None:
    model = make_router().model.train()
    with pytest.raises(ValueError, match="coefficients"):
        candidate_losses(model, make_router().batch, torch.zeros(3))
    with pytest.raises(ZeroDivisionError), as_deployed(model):
        _ = 1 / 0
    assert all(part.training for part in model.modules())


def two_block_model(sources: int = 3) -> tuple[RoutedModel, SourceLibrary]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    space = ParameterSpace.from_module(network, {"first": r"1\.", "last": r"3\."})
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(sources, space.dim, generator=generator, dtype=torch.float64)
    library = SourceLibrary(tuple("abc"[:sources]), basis, space)
    prior = LogisticNormalPrior(sources, 0, num_blocks=2)
    return RoutedModel(TaskNetwork(network, space), library, prior=prior, compute_dtype=torch.float64).double(), library


def test_blockwise_routings(make_router: Callable) -> None:
    """Block "first" of source a with block "last" of source c is a network that can be pasted together."""
    model, library = two_block_model()
    batch = make_router().batch
    coefficients = torch.eye(3, dtype=torch.float64)[torch.tensor([[0, 2], [1, 1]])]
    pasted = torch.stack([torch.cat([library.basis[0, :25], library.basis[2, 25:]]), library.basis[1]])
    whole = SourceLibrary(("pasted", "b"), pasted, library.space)
    plain = RoutedModel(
        model.network, whole, prior=LogisticNormalPrior(2, 0, num_blocks=2), compute_dtype=torch.float64
    ).double()
    each = torch.eye(2, dtype=torch.float64).unsqueeze(1).expand(-1, 2, -1)
    for evaluate in (candidate_losses, support_candidate_losses):
        torch.testing.assert_close(evaluate(model, batch, coefficients), evaluate(plain, batch, each))


def test_coefficients_of_another_shape_are_refused(make_router: Callable) -> None:
    router, (blockwise, _) = make_router(), two_block_model()
    for evaluate in (candidate_losses, support_candidate_losses):
        with pytest.raises(ValueError, match=r"shape \(7, 1, 5\); expected \(J, R \+ M\)"):
            evaluate(router.model, router.batch, routings_of(router).unsqueeze(1))
        with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(J, 2, R \+ M\): the model mixes in 2 blocks"):
            evaluate(blockwise, router.batch, torch.eye(3)[:2])  # 2 rows could pass for 2 blocks
