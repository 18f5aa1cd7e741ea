"""Outcomes: several rules in one forward, against each network by itself and a loop over queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.inference.objective.outcome import Outcome, class_probabilities, first_equal, run_routings
from pyro_smat.networks.features import SourceFeatures


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


def test_an_impossible_label(make_router: Callable) -> None:
    """It costs -log 1e-12, not infinity."""
    batch = make_router(episodes=2).batch
    probabilities = torch.nn.functional.one_hot((batch.query.labels + 1) % batch.max_way, batch.max_way).double()
    outcome = Outcome(probabilities.unsqueeze(0), probabilities.new_ones(1, len(batch)), batch)
    assert torch.equal(outcome.probabilities, probabilities)
    assert outcome.accuracy.tolist() == [0.0, 0.0]
    assert outcome.losses.tolist() == pytest.approx([-math.log(1e-12)] * 2)


def test_every_different_routing_of_a_task_is_run_once(make_router: Callable) -> None:
    """Tasks with one, two, three and four different routings of four: ten networks, each task's own in its place."""
    router = make_router("catalog", episodes=4)
    model, batch = router.model.eval(), router.batch
    assert len(set(batch.way.tolist())) > 1
    catalog = router.guide.posterior(batch).coefficients
    numbers = torch.tensor([[0, 1, 2, 3], [0, 5, 4, 2], [0, 1, 2, 1], [0, 5, 6, 0]])
    rows = catalog[numbers].to(torch.float64)
    logits, run = model.logits, []

    def counted(coefficients: Tensor, *arguments: Any) -> Tensor:
        run.append(coefficients.shape[:-1].numel())
        return logits(coefficients, *arguments)

    object.__setattr__(model, "logits", counted)
    with torch.no_grad():
        found = class_probabilities(model, rows, batch, model.basis())
        assert run == [10]
        expected = torch.stack([logits(one, batch).softmax(-1) for one in rows])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("blocks", [1, 2])
def test_sources_without_experts_are_looked_up(blocks: int, crossed_pool: Any, make_router: Callable) -> None:
    """Beside routings with experts: only these run, and all predict what their networks do."""
    router = make_router("logistic_normal", blocks=blocks)
    model = router.model.eval()
    features = SourceFeatures(router.network, model.source_basis, crossed_pool)
    sampler = EpisodeSampler(crossed_pool, (2, 4), 2, 3, attributes=["shape"])
    batch = features.attach(sampler.sample(3))
    rows = torch.rand(3, 3, *(() if blocks == 1 else (2,)), 5, generator=torch.Generator().manual_seed(0)).double()
    rows[1] = rows[0, 0]  # beside different ones in the first
    rows[2, :, ..., :] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).double()
    ran, network = [], model.network._forward

    def counted(theta: Tensor, images: Tensor) -> Tensor:
        ran.append(len(theta))
        return network(theta, images)

    features.embed()
    model.network._forward = counted
    with torch.no_grad():
        found = class_probabilities(model, rows, batch, model.basis())
        assert sum(ran) == 3 + 2  # of the second rule, that of the first task is there already
        other = class_probabilities(model, rows, batch, 0.5 * model.basis().matrix())
        unknown = replace(batch, known=None)
        for basis, probabilities in ((model.basis(), found), (0.5 * model.basis().matrix(), other)):
            expected = torch.stack([model.logits(one, unknown, basis).softmax(-1) for one in rows])
            real = batch.query.mask  # padding gets any features
            torch.testing.assert_close(probabilities[:, real], expected[:, real])


def test_a_routing_that_is_not_a_number_is_no_other_routing() -> None:
    rows = torch.tensor([[[1.0, 0.0]], [[math.nan, math.nan]], [[1.0, 0.0]]])
    assert first_equal(rows).tolist() == [[0], [1], [0]]
