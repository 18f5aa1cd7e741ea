"""Concrete posteriors: against torch's own, cold and extreme, annealed, per episode, straight-through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from small_posteriors import random_posterior
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical

from pyro_smat.encoders import EvidenceEncoder
from pyro_smat.guides import ConcreteGuide, ConcretePosterior
from pyro_smat.inference import CVaR_ELBO
from pyro_smat.models.priors import ConcretePrior, LogisticNormalPrior

CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("blocks", [1, 2])
def test_density_is_that_of_torch(blocks: int) -> None:
    """Every episode has temperatures of its own, one for the sources and one for the experts."""
    q = random_posterior("concrete", 3, 2, blocks)
    assert isinstance(q, ConcretePosterior)
    draws = q.sample(6, torch.Generator().manual_seed(0))
    expected = torch.zeros(6, 2, dtype=torch.float64)
    for i in range(2):
        for index, part in enumerate((slice(0, 3), slice(3, 5))):
            w = draws[:, i, ..., part]
            reference = RelaxedOneHotCategorical(q.temperature[i, index], logits=q.logits[i, ..., part])
            log_prob = reference.log_prob(w) + w.log().sum(-1) + 0.5 * math.log(w.shape[-1])
            expected[:, i] += log_prob if blocks == 1 else log_prob.sum(-1)
    torch.testing.assert_close(q.log_prob(draws), expected)


def test_draws_have_the_distribution_of_torch() -> None:
    q = random_posterior("concrete", 3, 0, episodes=1)
    assert isinstance(q, ConcretePosterior)
    torch.manual_seed(0)
    reference = RelaxedOneHotCategorical(q.temperature[0, 0], logits=q.logits[0]).sample((100_000,))
    draws = q.sample(100_000, torch.Generator().manual_seed(1))[:, 0]
    for found, expected in ((draws, reference), (draws.square(), reference.square())):
        torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=0.006)


def cold(dtype: torch.dtype = torch.float32) -> tuple[ConcretePosterior, Tensor]:
    logits = torch.tensor([[20.0, -20.0, 0.0, 20.0, -20.0], [-20.0, 20.0, 20.0, 0.0, 0.0]], dtype=dtype)
    logits.requires_grad_()
    return ConcretePosterior(logits, torch.full((2, 2), 0.05).to(dtype), num_sources=3), logits


@pytest.mark.parametrize("prior", [LogisticNormalPrior(3, 2), ConcretePrior(3, 2, temperature=0.05)])
def test_cold_and_extreme_in_float32(prior: LogisticNormalPrior | ConcretePrior) -> None:
    """T = 0.05 and logits of +-20: values and gradients of draws, densities and KL are finite, and right."""
    q, logits = cold()
    draws = q.sample(1000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    kl = q.kl(prior)
    drawn = {name: site.rsample((1000,)) for name, site in q.sites().items()}
    log_q = torch.stack([site.log_prob(drawn[name]) for name, site in q.sites().items()]).sum(0)
    for value in (draws.square().sum(), q.mean.square().sum(), kl.sum(), log_q.sum(), q.log_prob(draws).sum()):
        assert torch.isfinite(value)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert torch.isfinite(gradient).all()
    precise, _ = cold(torch.float64)
    torch.manual_seed(0)
    expected = precise.kl(prior.double()).float()
    prior.float()
    if q.kl_method(prior) == "exact":
        torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-3)
    else:
        torch.testing.assert_close(kl, expected, rtol=0.1, atol=0)  # other draws


def test_a_cold_router_trains_in_float32(make_router: Callable) -> None:
    cold_options = {"temperature": 0.05, "final_temperature": 0.05}
    router = make_router("concrete", dtype=torch.float32, guide_options=cold_options)
    with torch.no_grad():
        router.guide.router.source_head.weight.mul_(300.0)
    location = router.guide.router(router.batch).location
    assert location.abs().max() > 20
    pyro.set_rng_seed(0)
    loss = CVaR_ELBO(rho=1.0, num_particles=8, vectorize_particles=True).loss_and_grads(
        router.model, router.guide, router.batch
    )
    assert math.isfinite(loss)
    for name, parameter in router.guide.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# --- temperatures -----------------------------------------------------------------------------------------------------


def test_annealing_is_geometric(make_router: Callable) -> None:
    batch = make_router("concrete").batch
    guide = ConcreteGuide(
        3, 2, encoder=EvidenceEncoder(8), temperature=2.0, final_temperature=0.5, per_episode=False
    ).double()
    for progress, expected in ((0.0, 2.0), (0.25, math.sqrt(2)), (0.5, 1.0), (1.0, 0.5), (1.3, 0.5)):
        guide.anneal(progress)
        found = guide.posterior(batch).temperature
        torch.testing.assert_close(found, torch.full((4, 2), expected, dtype=torch.float64), **CLOSE)
    saved = ConcreteGuide(3, 2, encoder=EvidenceEncoder(8), temperature=2.0, per_episode=False)
    saved.load_state_dict(guide.state_dict())
    assert saved.temperature.item() == pytest.approx(0.5)


def test_temperatures_of_episodes(make_router: Callable) -> None:
    """Equal in a fresh guide; then within a factor e of the current one, of their own for sources and experts."""
    fresh = ConcreteGuide(3, 2, encoder=EvidenceEncoder(8), temperature=0.8).double()
    router = make_router("concrete")
    same = torch.full((4, 2), 0.8, dtype=torch.float64)
    torch.testing.assert_close(fresh.posterior(router.batch).temperature, same, **CLOSE)
    found = router.guide.posterior(router.batch).temperature
    assert (found.std(0) > 1e-4).all()
    assert ((found[:, 0] - found[:, 1]).abs() > 1e-4).all()
    with torch.no_grad():
        router.guide.relative.bias.fill_(-30.0)
    cooler = router.guide.posterior(router.batch).temperature
    torch.testing.assert_close(cooler, torch.full((4, 2), math.exp(-1), dtype=torch.float64), **CLOSE)
    router.guide.temperature.fill_(0.06)
    assert (router.guide.posterior(router.batch).temperature == 0.05).all()  # never colder


def test_temperature_gets_a_gradient(make_router: Callable) -> None:
    router = make_router("concrete")
    pyro.set_rng_seed(0)
    CVaR_ELBO(rho=1.0).loss_and_grads(router.model, router.guide, router.batch)
    assert (router.guide.relative.weight.grad.abs().sum(1) > 0).all()


def test_refused() -> None:
    for options in ({"temperature": 0.04}, {"final_temperature": 0.01}):
        with pytest.raises(ValueError, match=r"expected at least 0.05: below, float32 has no gradient left"):
            ConcreteGuide(3, **options)


# --- straight-through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
def test_hard_draws_are_one_hot_with_the_gradient_of_the_soft_ones(blocks: int) -> None:
    soft = random_posterior("concrete", 3, 2, blocks)
    assert isinstance(soft, ConcretePosterior)
    logits = soft.logits.clone().requires_grad_()
    weight = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for hard in (False, True):
        q = ConcretePosterior(logits, soft.temperature, num_sources=3, hard=hard)
        draws = q.sample(50, torch.Generator().manual_seed(0))
        gradients.append(torch.autograd.grad((draws * weight).sum(), logits)[0])
        corners = draws.round()
        assert (draws - corners).abs().max() < 1e-9 if hard else (draws - corners).abs().max() > 0.1
        for part in corners.split([3, 2], dim=-1):
            if hard:
                assert ((part == 1).sum(-1) == 1).all()
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.parametrize("blocks", [1, 2])
def test_hard_posteriors_mean_and_mode_are_those_of_their_draws(blocks: int) -> None:
    """The largest of Gumbel-perturbed logits is entry k with probability softmax(logits)_k."""
    soft = random_posterior("concrete", 3, 2, blocks)
    assert isinstance(soft, ConcretePosterior)
    q = ConcretePosterior(soft.logits, soft.temperature, num_sources=3, hard=True)
    draws = q.sample(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q.mean, draws.mean(0), rtol=0, atol=0.01)
    for k, part in enumerate(soft.logits.split([3, 2], dim=-1)):
        assert torch.equal(q.mode.split([3, 2], dim=-1)[k].argmax(-1), part.argmax(-1))
    assert torch.equal(q.mode, q.mode.round())


def test_a_straight_through_model_composes_corners(make_router: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"straight_through": True}
    router = make_router("concrete", guide_options=options, model_options=options)
    composed: list[Tensor] = []
    plain = type(router.model).logits

    def spy(self: Any, coefficients: Tensor, *rest: Any) -> Tensor:
        composed.append(coefficients)
        return plain(self, coefficients, *rest)

    monkeypatch.setattr(type(router.model), "logits", spy)
    pyro.set_rng_seed(0)
    elbo = CVaR_ELBO(rho=1.0, kl_weight=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=2)
    elbo.loss_and_grads(router.model, router.guide, router.batch)
    (c,) = composed
    assert c.shape == (5, 4, 5)
    assert (c - c.round()).abs().max() < 1e-9
    gradient = router.guide.router.source_head.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-6
    router.model.eval()
    elbo.loss(router.model, router.guide, router.batch)
    assert (composed[-1] - composed[-1].round()).abs().max() < 1e-9  # in evaluation too, as its posterior's draws
