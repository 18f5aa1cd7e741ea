"""Single-source baselines: logits, support losses and the reference of regret, against loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO
from pyro_smat.inference.objective.reference import SourceReference, query_losses, source_logits, support_losses


def loop_logits(router, i: int, r: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Prototype logits of source r on episode i, with nothing but a forward pass of that source."""
    batch = router.batch
    weight, bias = router.library.basis[r, :20].view(5, 4), router.library.basis[r, 20:]

    def features(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ weight.T + bias)

    shots, queries = batch.support.mask[i], batch.query.mask[i]
    support, labels = features(batch.support.images[i][shots]), batch.support.labels[i][shots]
    centres = torch.stack([support[labels == k].mean(0) for k in range(int(batch.way[i]))])
    return 10 * F.cosine_similarity(features(batch.query.images[i][queries])[:, None], centres[None], dim=-1)


def loop_losses(router, mean: bool) -> Tensor:  # type: ignore[no-untyped-def]
    rows = []
    for i in range(len(router.batch)):
        labels = router.batch.query.labels[i][router.batch.query.mask[i]]
        reduction = "mean" if mean else "sum"
        rows.append(
            torch.stack([F.cross_entropy(loop_logits(router, i, r), labels, reduction=reduction) for r in range(3)])
        )
    return torch.stack(rows)


def test_source_logits_and_losses(make_router: Callable) -> None:
    router = make_router()
    logits = source_logits(router.features, router.batch)
    assert logits.shape == (4, 3, router.batch.query.labels.shape[1], 5)
    for i in range(4):
        queries, way = int(router.batch.query.mask[i].sum()), int(router.batch.way[i])
        for r in range(3):
            expected = loop_logits(router, i, r).to(logits.dtype)
            torch.testing.assert_close(logits[i, r, :queries, :way], expected, rtol=1e-4, atol=1e-5)
        assert (logits[i, :, :, way:] == -1e4).all()
    expected = loop_losses(router, mean=True).to(logits.dtype)
    torch.testing.assert_close(query_losses(logits, router.batch), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(query_losses(logits[:, 1], router.batch), expected[:, 1], rtol=1e-4, atol=1e-5)


def test_support_losses_leave_one_out(make_router: Callable) -> None:
    router = make_router()
    found = support_losses(router.batch)
    i = 2  # 4-way 3-shot: nobody is alone in its class
    shots = router.batch.support.mask[i]
    images, labels = router.batch.support.images[i][shots], router.batch.support.labels[i][shots]
    for r in range(3):
        weight, bias = router.library.basis[r, :20].view(5, 4), router.library.basis[r, 20:]
        features = torch.tanh(images.flatten(1) @ weight.T + bias)
        total = 0.0
        for j in range(len(labels)):
            others = torch.arange(len(labels)) != j
            centres = torch.stack([features[others & (labels == k)].mean(0) for k in range(4)])
            logits = 10 * F.cosine_similarity(features[j : j + 1], centres, dim=-1)
            total += F.cross_entropy(logits, labels[j]).item()
        assert found[i, r].item() == pytest.approx(total / len(labels), rel=1e-4)


@pytest.mark.parametrize(("name", "mean"), [("nll", False), ("mean_nll", True)])
def test_reference_is_in_the_units_of_the_objective(name: str, mean: bool, make_router: Callable) -> None:
    router = make_router()
    losses = loop_losses(router, mean)
    best = SourceReference(router.features, episode_loss=name)(router.batch)
    fallback = SourceReference(router.features, "fallback", episode_loss=name)(router.batch)
    torch.testing.assert_close(best.double(), losses.amin(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fallback.double(), losses[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nll", "mean_nll", "expected_error"])
def test_regret_of_a_source_against_itself_is_zero(name: str, make_router: Callable) -> None:
    """R = 1, M = 0 is source 0 alone: with the fallback as reference there is nothing to regret."""
    router = make_router("logistic_normal", sources=1, experts=0)
    reference = SourceReference(router.features, "fallback", episode_loss=name)
    terms = CVaR_ELBO(rho=1.0, episode_loss=name, reference=reference).terms(router.model, router.guide, router.batch)
    assert terms.tail_loss.abs().item() < 1e-5
    assert terms.mean_loss.item() > 0.01


def test_unknown_reference(make_router: Callable) -> None:
    with pytest.raises(ValueError, match="reference is 'oracle'; expected 'best_source' or 'fallback'"):
        SourceReference(make_router().features, "oracle")
