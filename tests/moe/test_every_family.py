"""Guides and ways of predicting over every family of routers: a sequence is routed alike alone and among others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from families import FAMILIES, tiny, tokens
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_smat.guides.moe_routing import TokenRoutingGuide
from pyro_smat.models.variational_routing import CausalLM, VariationalRouting
from pyro_smat.moe import (
    Attachment,
    GaussianPrior,
    LogTemperaturePrior,
    RouterCall,
    RoutingFunction,
    attach,
    expected_routing,
    mean_routing,
    predict,
    sampled_routing,
    trajectories,
)
from pyro_smat.moe.baselines import RouterLaplace, dropout_routing
from pyro_smat.moe.measures import recording

GUIDES: list[Any] = ["mean_field", "low_rank", "full", "point", "temperature", "point_temperature"]
WEIGHTS_OUT_OF_REACH = {"afmoe", "phimoe", "switch_transformers"}
WAYS: dict[str, Callable[[Any], RoutingFunction]] = {
    "mean": mean_routing,
    "expected": lambda guide: expected_routing(guide, 4),
    "one draw": sampled_routing,
    "drawn experts": lambda guide: sampled_routing(guide, selection="sample"),
}


def inputs(model: nn.Module, rows: slice = slice(None)) -> dict[str, Tensor]:
    data = tokens(3, 6)
    if model.config.is_encoder_decoder:
        data["decoder_input_ids"] = tokens(3, 6, seed=1)["input_ids"]
    return {name: value[rows] for name, value in data.items()}


def trained(attachment: Attachment, family: Any) -> TokenRoutingGuide:
    """A guide away from its prior, as training leaves it. (Temperatures keep the experts, in Phimoe the answer too.)"""
    prior = LogTemperaturePrior(0.7) if "temperature" in family else GaussianPrior(0.7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        guide = TokenRoutingGuide(VariationalRouting(attachment, CausalLM(), prior), family, trunk=8, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return guide


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> tuple[str, Attachment]:
    return request.param, attach(tiny(request.param).requires_grad_(False))


def test_every_guide_predicts_in_every_way(network: tuple[str, Attachment]) -> None:
    family, attachment = network
    model = attachment.model

    def answers(function: RoutingFunction | None, rows: slice = slice(None)) -> Tensor:
        data = inputs(model, rows)
        return predict(attachment, function, lambda: model(**data).logits[:, -1]).probabilities

    plain = answers(None)
    for kind in GUIDES:
        guide = trained(attachment, kind)
        for way, routing in WAYS.items():
            if way == "drawn experts" and family in WEIGHTS_OUT_OF_REACH:
                with pytest.raises(NotImplementedError, match=r"expected|by its own rule"):
                    answers(routing(guide))
                continue
            together = answers(routing(guide))
            assert together.shape == plain.shape
            assert not torch.allclose(together, plain) or "temperature" in kind, (kind, way)
            if way in ("mean", "expected"):  # no draws of its own: a row is answered alike alone
                alone = torch.cat([answers(routing(guide), slice(i, i + 1)) for i in range(3)])
                torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)
            else:
                assert answers(routing(guide), slice(0, 1)).shape == plain[:1].shape
        functions = [sampled_routing(guide, seed) for seed in range(2)]
        for rows in (slice(None), slice(0, 1)):
            data = inputs(model, rows)
            prediction = trajectories(attachment, functions, lambda data=data: model(**data).logits[:, -1])
            information = prediction.mutual_information
            assert information.isfinite().all()
            if "temperature" not in kind:
                assert torch.equal(*prediction.components) == (kind == "point"), kind


@torch.no_grad()
def test_a_posterior_is_that_of_every_token_by_itself(network: tuple[str, Attachment]) -> None:
    """Against the heads on one token after another, as the network itself gave them to the router."""
    _, attachment = network
    guide = trained(attachment, "full")
    given: list[Tensor] = []
    target = attachment.model.get_submodule(attachment.routers[0].name)
    target.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    found: list[tuple[RouterCall, Any]] = []

    def function(call: RouterCall) -> Tensor:
        if call.router.index == 0:
            found.append((call, guide.distribution(call)))
        return call.logits

    with attachment.routing(function):
        attachment.model(**inputs(attachment.model))
    call, distribution = found[0]
    assert call.hidden.shape[:-1] == call.logits.shape[:-1] == distribution.batch_shape
    assert call.hidden.shape[:-1].numel() == 18
    torch.testing.assert_close(call.logits_of(call.hidden), call.logits, rtol=0, atol=0)
    if call.router.contract.target == "":  # otherwise what its child is given has been prepared by the router
        torch.testing.assert_close(call.hidden.flatten(), given[0].flatten(), rtol=0, atol=0)
    for hidden, logits, loc in zip(
        call.hidden.flatten(0, -2), call.logits.flatten(0, -2), distribution.loc.flatten(0, -2), strict=True
    ):
        prior = GaussianPrior(0.7)(logits, call.router)
        torch.testing.assert_close(guide.heads(0, hidden, prior).mean, loc, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "temperature"])
def test_every_family_trains(network: tuple[str, Attachment], kind: str) -> None:
    _, attachment = network
    guide = trained(attachment, kind)
    pyro.set_rng_seed(0)
    for rows in (slice(None), slice(0, 1)):
        data = inputs(attachment.model, rows)
        labels = data.get("decoder_input_ids", data["input_ids"])
        loss = TraceMeanField_ELBO().differentiable_loss(guide.routing_model, guide, {**data, "labels": labels})
        guide.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in guide.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "deepseek_v2", "glm4_moe", "solar_open", "llama4_text"])
@torch.no_grad()
def test_baselines_and_noise_where_routers_flatten_sequences(family: str) -> None:
    """Dropout, Laplace and noise on hidden states reach routers of both shapes, by the same formulas."""
    attachment = attach(tiny(family))
    model, router = attachment.model, attachment.routers[0]
    gate = model.get_submodule(router.name).weight
    data = inputs(model)
    own: list[RouterCall] = []
    with attachment.routing(lambda call: (own.append(call), call.logits)[1]):
        model(**data)
    hidden = own[0].hidden
    with recording(attachment, dropout_routing(0.5, 1)) as dropped:
        model(**data)
    kept = torch.rand(hidden.shape, generator=torch.Generator().manual_seed(1)) >= 0.5
    torch.testing.assert_close(dropped.logits[0], (hidden * kept / 0.5) @ gate.T, rtol=1e-4, atol=1e-4)
    shift = torch.linspace(-1, 1, hidden.shape[-1])
    with recording(attachment, None, lambda call: shift.expand_as(call.hidden)) as noisy:
        model(**data)
    torch.testing.assert_close(noisy.logits[0], (hidden + shift) @ gate.T, rtol=1e-4, atol=1e-4)
    laplace = RouterLaplace({r.name: torch.full((8, 32), 0.3) for r in attachment.routers})
    distribution = laplace.distribution(own[0])
    torch.testing.assert_close(distribution.variance, 0.3 * hidden.square().sum(-1, keepdim=True).expand(-1, 8))
    with recording(attachment, laplace.member(3)) as drawn:
        model(**data)
    matrix = 0.3**0.5 * torch.randn(8, 32, generator=torch.Generator().manual_seed(300_009))
    torch.testing.assert_close(drawn.logits[0], own[0].logits + hidden @ matrix.T, rtol=1e-4, atol=1e-4)
