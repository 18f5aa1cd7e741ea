"""Heads and guide: KLs against dense Gaussians and Monte Carlo, float32, starting at the prior, copies and files."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_smat.guides.moe_routing import RoutingHeads, TokenRoutingGuide
from pyro_smat.models.variational_routing import Classification, VariationalRouting
from pyro_smat.moe import Router, attach, expected_routing
from pyro_smat.moe.contracts import Contract
from pyro_smat.moe.priors import GaussianPrior, LogTemperaturePrior

ROUTER = Router("layer", 0, 5, 2, 8, Contract("linear", 5))
HIDDEN = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))


def posterior(family: Any, scale: float = 1.3, noise: float = 0.3) -> tuple[Any, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = RoutingHeads((ROUTER,), family, trunk=16, rank=2)
        with torch.no_grad():
            for parameter in heads.parameters():
                parameter.add_(noise * torch.randn(parameter.shape))
    prior = (LogTemperaturePrior if "temperature" in family else GaussianPrior)(scale)(LOGITS, ROUTER)
    return heads(0, HIDDEN, prior), prior


@pytest.mark.parametrize("family", ["mean_field", "low_rank", "full", "temperature"])
def test_kl_is_closed_and_right(family: str) -> None:
    """Against torch's KL of dense Gaussians in float64, and Monte Carlo."""
    q, p = posterior(family)
    found = kl_divergence(q, p)
    assert found.shape == (3, 4)
    if family != "temperature":
        covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
        dense_q = torch.distributions.MultivariateNormal(q.mean.double(), covariance.double())
        dense_p = torch.distributions.MultivariateNormal(p.mean.double(), torch.diag_embed(p.variance).double())
        torch.testing.assert_close(found.double(), kl_divergence(dense_q, dense_p), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    draws = q.sample((20_000,))
    difference = q.log_prob(draws) - p.log_prob(draws)
    error = difference.std(0) / math.sqrt(20_000)
    assert ((difference.mean(0) - found).abs() < 5 * error + 1e-4).all()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_full_kl_is_the_formula_of_the_paper_in_residual_coordinates(scale: float) -> None:
    q, p = posterior("full", scale)
    tril, delta = q.scale_tril, q.loc - LOGITS
    log_diagonal = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = (tril.square().sum((-2, -1)) + delta.square().sum(-1)) / scale**2
    expected = 0.5 * (squares - 5 + 2 * 5 * math.log(scale) - 2 * log_diagonal)
    torch.testing.assert_close(kl_divergence(q, p), expected)


@pytest.mark.parametrize("family", ["mean_field", "full", "point"])
def test_heads_start_at_the_prior(family: str) -> None:
    q, p = posterior(family, noise=0.0)
    torch.testing.assert_close(q.mean, p.mean, atol=0.02, rtol=0)
    if family != "point":
        torch.testing.assert_close(
            q.stddev if family == "mean_field" else q.variance.sqrt(), p.stddev, atol=0.02, rtol=0
        )
        assert kl_divergence(q, p).max() < 1e-3


def test_temperatures_start_at_one() -> None:
    for family in ("temperature", "point_temperature"):
        q, _ = posterior(family, noise=0.0)
        torch.testing.assert_close(q.mean.exp(), torch.ones(3, 4), atol=0.01, rtol=0)


@pytest.mark.parametrize("family", ["mean_field", "full", "temperature"])
def test_heads_compute_in_float32_whatever_the_network_does(family: str) -> None:
    heads = RoutingHeads((ROUTER,), family, trunk=16)
    prior = (LogTemperaturePrior if family == "temperature" else GaussianPrior)()(LOGITS, ROUTER)
    with torch.autocast("cpu", torch.bfloat16):
        q = heads(0, HIDDEN.bfloat16(), prior)
    assert q.mean.dtype == torch.float32
    torch.testing.assert_close(q.mean, heads(0, HIDDEN.bfloat16().float(), prior).mean, rtol=0, atol=0)
    with pytest.raises(TypeError, match="keep the guide in float32"):
        heads.bfloat16()(0, HIDDEN, prior)


def test_trunk_sets_the_size() -> None:
    sizes = [sum(p.numel() for p in RoutingHeads((ROUTER,), "mean_field", trunk=t).parameters()) for t in (16, 64)]
    assert sizes == [16 * 8 + 2 * (16 * 5 + 5), 64 * 8 + 2 * (64 * 5 + 5)]
    with pytest.raises(ValueError, match="family is 'nothing'"):
        RoutingHeads((ROUTER,), "nothing")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not show its hidden size"):
        RoutingHeads((Router("x", 0, 5, 2, None, Contract("method", 5)),))


class Block(nn.Module):
    """A classifier: one block of experts with a plain gate, and the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.top_k = nn.Linear(8, 5), 2
        self.experts = nn.ModuleList(nn.Linear(8, 3) for _ in range(5))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        kept, index = self.gate(x).topk(2, -1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        chosen = outputs.gather(-2, index.unsqueeze(-1).expand(*index.shape, 3))
        tokens = (kept.softmax(-1).unsqueeze(-1) * chosen).sum(-2)
        return (tokens * attention_mask.unsqueeze(-1)).sum(1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.block(**inputs)


def pair() -> tuple[VariationalRouting, TokenRoutingGuide, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = VariationalRouting(attach(Network()), Classification(), beta=0.1)
    batch = {"x": HIDDEN, "attention_mask": torch.ones(3, 4), "labels": torch.tensor([0, 1, 2])}
    return model, TokenRoutingGuide(model, "full", trunk=4), batch


def test_guides_are_copied_and_saved_without_their_trace() -> None:
    model, guide, batch = pair()
    elbo = TraceMeanField_ELBO()

    def loss(g: TokenRoutingGuide) -> float:
        pyro.set_rng_seed(0)
        return elbo.loss(model, g, batch)

    before = loss(guide)
    assert list(guide.state_dict()) == [
        f"heads.layers.0.{n}" for n in ("trunk.weight", "mean.weight", "mean.bias", "cholesky.weight", "cholesky.bias")
    ]
    assert loss(copy.deepcopy(guide)) == before
    other = TokenRoutingGuide(model, "full", trunk=4)
    assert loss(other) != before
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert loss(other) == before


@pytest.mark.parametrize("used", [False, True])
def test_a_guide_is_pickled_with_its_model_and_network(used: bool) -> None:
    """Loss, routing and parameters come back, with a network of its own; after use and a failed step too."""
    model, guide, batch = pair()
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    @torch.no_grad()
    def results(g: TokenRoutingGuide) -> tuple[float, Tensor]:
        pyro.set_rng_seed(0)
        loss = TraceMeanField_ELBO().loss(g.routing_model, g, batch)
        with g.routing_model.attachment.routing(expected_routing(g, 4)):
            return loss, g.routing_model.network(**inputs)

    if used:
        results(guide)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            guide({**batch, "x": HIDDEN[..., :7]})
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    for other in (pickle.loads(pickle.dumps(guide)), torch.load(buffer, weights_only=False)):
        loss, routed = results(other)
        assert (loss, routed.tolist()) == (results(guide)[0], results(guide)[1].tolist())
        assert other.routing_model.network is not model.network
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert results(other)[0] != loss == results(guide)[0]


def test_elbo_modules_see_the_heads_and_particles_are_not_vectorised() -> None:
    model, guide, batch = pair()
    module = TraceMeanField_ELBO()(model, guide)
    assert {id(p) for p in guide.parameters()} <= {id(p) for p in module.parameters()}
    module(batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in guide.parameters())
    assert not {id(p) for p in model.network.parameters()} & {id(p) for p in module.parameters()}


def test_a_long_posterior_is_closed_form_to_the_elbo() -> None:
    """Nothing but the likelihood is sampled: with a network that ignores its routing, the loss stays the same."""
    model, guide, batch = pair()
    with torch.no_grad():
        for expert in model.network.block.experts:
            expert.weight.zero_()
            expert.bias.zero_()
    losses = {round(TraceMeanField_ELBO().loss(model, guide, batch), 5) for _ in range(4)}
    assert len(losses) == 1
    assert isinstance(guide.get_traces()[1].nodes["route.0"]["fn"], dist.MultivariateNormal)
