"""Outcomes: several rules in one forward, against each network by itself and a loop over queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_smat.inference.objective.outcome import Outcome, run_routings


def by_hand(probabilities: Tensor, batch: Any) -> tuple[list[float], list[float]]:
    accuracy, losses = [], []
    for i in range(len(batch)):
        real = [j for j, kept in enumerate(batch.query.mask[i].tolist()) if kept]
        labels = batch.query.labels[i].tolist()
        accuracy.append(sum(int(probabilities[i, j].argmax()) == labels[j] for j in real) / len(real))
        losses.append(-sum(math.log(max(float(probabilities[i, j, labels[j]]), 1e-12)) for j in real) / len(real))
    return accuracy, losses


@pytest.mark.parametrize("family", ["logistic_normal", "catalog"])
def test_rules_in_one_forward_are_the_rules_alone(family: str, make_router: Callable) -> None:
    router = make_router(family, episodes=5)
    model, batch = router.model.eval(), router.batch
    posterior = router.guide.posterior(batch)
    drawn = posterior.sample(3, torch.Generator().manual_seed(0)).detach()
    weights = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=drawn.dtype)
    weights = weights / weights.sum(0)
    mean = posterior.mean.detach().unsqueeze(0)
    found = run_routings(model, batch, {"mean": (mean, mean.new_ones(1, 5)), "three": (drawn, weights)})
    assert list(found) == ["mean", "three"]
    assert not batch.query.mask.all()
    with torch.no_grad():
        alone = [model.logits(row, batch).softmax(-1) for row in drawn]
        torch.testing.assert_close(found["mean"].probabilities, model.logits(mean[0], batch).softmax(-1))
    mixed = sum(w[:, None, None] * p for w, p in zip(weights, alone, strict=True))
    torch.testing.assert_close(found["three"].members, torch.stack(alone))
    torch.testing.assert_close(found["three"].probabilities, mixed)
    for outcome in found.values():
        accuracy, losses = by_hand(outcome.probabilities, batch)
        assert outcome.accuracy.tolist() == pytest.approx(accuracy)
        assert outcome.losses.tolist() == pytest.approx(losses, rel=1e-5)


def test_several_bases_are_averaged(make_router: Callable) -> None:
    """Of samples of the gates: the mean of the probabilities under each."""
    router = make_router(episodes=3)
    model, batch = router.model.eval(), router.batch
    with torch.no_grad():
        bases = torch.stack([model.basis().matrix(), 0.5 * model.basis().matrix()])
    mean = router.guide.posterior(batch).mean.detach().unsqueeze(0)
    routings = {"mean": (mean, mean.new_ones(1, 3))}
    both = run_routings(model, batch, routings, basis=bases)["mean"].probabilities
    each = [run_routings(model, batch, routings, basis=basis)["mean"].probabilities for basis in bases]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    assert (each[0] - each[1]).abs().max() > 1e-3


def test_predictions_from_elsewhere(make_router: Callable) -> None:
    """An impossible label costs -log 1e-12, not infinity."""
    batch = make_router(episodes=2).batch
    probabilities = torch.nn.functional.one_hot((batch.query.labels + 1) % batch.max_way, batch.max_way).double()
    outcome = Outcome.of_probabilities(probabilities, batch)
    assert torch.equal(outcome.probabilities, probabilities)
    assert outcome.accuracy.tolist() == [0.0, 0.0]
    assert outcome.losses.tolist() == pytest.approx([-math.log(1e-12)] * 2)
