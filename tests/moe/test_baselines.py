"""Baselines: each against a computation of its own."""

from __future__ import annotations

import pytest
import torch
from gates import PlainBlock, block
from torch import Tensor, nn

from pyro_smat.moe import RouterCall, attach
from pyro_smat.moe.baselines import (
    FixedTemperature,
    PriorRouting,
    dropout_routing,
    fit_output_temperature,
    fit_router_laplace,
)
from pyro_smat.moe.measures import recording
from pyro_smat.moe.modes import mean_routing, sampled_routing
from pyro_smat.moe.priors import GaussianPrior

HIDDEN = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))


def test_output_temperature_is_the_minimum_of_the_nll() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3000, 4, generator=generator)
    labels = torch.multinomial((logits / 1.7).softmax(-1), 1, generator=generator).squeeze(1)
    found = fit_output_temperature(logits, labels)
    assert found == pytest.approx(1.7, rel=0.08)

    def nll(t: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / t, labels))

    assert nll(found) <= min(nll(found * 1.01), nll(found * 0.99))


@torch.no_grad()
def test_dropout_is_on_the_router_alone() -> None:
    model = block(PlainBlock)
    attachment = attach(model)
    calls: list[RouterCall] = []

    def function(call: RouterCall) -> Tensor:
        calls.append(call)
        return dropout_routing(0.5, 1)(call)

    with recording(attachment, function) as record:
        model(HIDDEN)
    generator = torch.Generator().manual_seed(1)
    flat = HIDDEN.flatten(0, 1)
    kept = torch.rand(flat.shape, generator=generator) >= 0.5
    torch.testing.assert_close(record.logits[0], model[0].gate(flat * kept / 0.5))
    with attachment.routing(dropout_routing(0.0)):
        dropped = model(HIDDEN)
    torch.testing.assert_close(dropped, model(HIDDEN))


@torch.no_grad()
def test_fixed_temperature_draws_with_softmax_of_logits_over_t() -> None:
    model = block(PlainBlock)
    attachment = attach(model)
    many = HIDDEN[:1, :1].expand(1, 20_000, 8)
    with recording(attachment, sampled_routing(FixedTemperature(0.5), 0, selection="sample")) as record:
        model(many)
    first = torch.bincount(record.index[0][:, 0], minlength=5) / 20_000
    expected = (model[0].gate(HIDDEN[0, :1]) / 0.5).softmax(-1).squeeze(0)
    torch.testing.assert_close(first, expected, atol=0.015, rtol=0)


@torch.no_grad()
def test_the_priors_mean_is_the_deterministic_router() -> None:
    model = block(PlainBlock)
    attachment = attach(model)
    with attachment.routing(mean_routing(PriorRouting(GaussianPrior()))):
        routed = model(HIDDEN)
    assert torch.equal(routed, model(HIDDEN))


def test_laplace_is_the_squared_gradient_of_each_sequence() -> None:
    """Against autograd, one sequence at a time, through the gate's own weight."""
    model = block(PlainBlock)
    labels = torch.randint(8, (4,), generator=torch.Generator().manual_seed(0))

    def log_likelihood(hidden: Tensor, label: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(model(hidden).mean(1), label, reduction="none")

    expected = torch.zeros(5, 8)
    for i in range(4):
        (g,) = torch.autograd.grad(log_likelihood(HIDDEN[i : i + 1], labels[i : i + 1]).sum(), [model[0].gate.weight])
        expected += g.square()
    attachment = attach(model)
    laplace = fit_router_laplace(
        attachment,
        [0, 1],
        lambda half: log_likelihood(HIDDEN[2 * half :][:2], labels[2 * half :][:2]),
        prior_precision=2,
    )
    variance = laplace.variances["0"] if "0" in laplace.variances else next(iter(laplace.variances.values()))
    torch.testing.assert_close(variance, 1 / (expected + 2), rtol=1e-4, atol=1e-6)

    marginals: list[tuple[Tensor, Tensor]] = []

    def watch(call: RouterCall) -> Tensor:
        q = laplace.distribution(call)
        marginals.append((q.mean, q.variance))
        return call.logits

    draws = []
    with torch.no_grad():
        with attachment.routing(watch):
            model(HIDDEN)
        for seed in range(3000):
            with recording(attachment, laplace.member(seed)) as record:
                model(HIDDEN[:1])
            draws.append(record.logits[0])
    stack = torch.stack(draws)
    torch.testing.assert_close(stack.var(0), marginals[0][1][:6], rtol=0.15, atol=0.02)
    with pytest.raises(ValueError, match="no batches"):
        fit_router_laplace(attachment, [], lambda batch: HIDDEN)
