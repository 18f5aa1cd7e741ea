"""CVaR_ELBO on a conjugate toy: values by hand, finite differences, closed-form gradients, regret, warnings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from elbo_toys import (
    NOISE,
    RHOS,
    TIGHT,
    PointToyGuide,
    Toy,
    ToyGuide,
    assert_same,
    small_tail,
    tail_by_hand,
    toy_data,
    value_and_gradient,
)
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.inference import CVaR_ELBO

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("options", [{"subsample_size": 6}, {"subsample": torch.tensor([1, 4, 5, 12])}])
@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (3, False), (3, True)])
def test_subsampled_episodes_scale_as_in_pyro(
    options: dict, reference: type[ELBO], kl: Any, particles: int, vectorised: bool
) -> None:
    y = toy_data()
    model, guide = Toy(options), ToyGuide(16, options)
    nesting: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    args = (model, guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(reference(**nesting), *args)
    assert_same(value_and_gradient(CVaR_ELBO(rho=1.0, kl=kl, **nesting), *args), expected)


@small_tail
def test_subsampled_tail_is_positively_homogeneous() -> None:
    """N episodes, B drawn: N x (CVaR of the drawn + mean KL of the drawn)."""
    y, rows = toy_data(), torch.tensor([1, 4, 5, 12])
    options = {"subsample": rows}
    whole, part = CVaR_ELBO(rho=0.5), CVaR_ELBO(rho=0.5)
    guide, alone = ToyGuide(16, options), ToyGuide(4)
    alone.loc.data, alone.raw.data = guide.loc.data[rows], guide.raw.data[rows]
    found = value_and_gradient(part, Toy(options), guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(whole, Toy(), alone, (y[rows],), list(alone.parameters()))
    torch.testing.assert_close(found[0], expected[0] * 16 / 4, **TIGHT)
    torch.testing.assert_close(found[1][rows], expected[1] * 4, **TIGHT)


@pytest.mark.parametrize(("reference", "kl"), [(Trace_ELBO, "sampled"), (TraceMeanField_ELBO, "exact")])
def test_constant_scale_is_as_in_pyro(reference: type[ELBO], kl: Any) -> None:
    y, model, guide = toy_data(), Toy(scaled=2.5), ToyGuide(16, scaled=2.5)
    args = (model, guide, (y,), list(guide.parameters()))
    expected = value_and_gradient(reference(), *args)
    assert_same(value_and_gradient(CVaR_ELBO(rho=1.0, kl=kl), *args), expected)
    unscaled = ToyGuide(16)
    plain = value_and_gradient(CVaR_ELBO(rho=0.5, kl=kl), Toy(), unscaled, (y,), list(unscaled.parameters()))
    assert_same(value_and_gradient(CVaR_ELBO(rho=0.5, kl=kl), *args), [2.5 * p for p in plain])


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("tail_weight", [1.0, 0.4, 0.0])
def test_value_by_hand(rho: float, particles: int, tail_weight: float) -> None:
    """B ((1 - kappa) mean X + kappa CVaR X + lambda mean KL), X averaged over particles first."""
    y, model, guide = toy_data(), Toy(), ToyGuide(16)
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3, tail_weight=tail_weight, num_particles=particles)
    pyro.set_rng_seed(11)
    terms = elbo.terms(model, guide, y)
    pyro.set_rng_seed(11)
    draws = [poutine.trace(guide).get_trace(y).nodes["z"]["value"].detach() for _ in range(particles)]
    constant = math.log(NOISE) + 0.5 * math.log(2 * math.pi)
    losses = [
        sum((0.5 * ((y[i] - z[i]) / NOISE) ** 2 + constant).sum().item() for z in draws) / particles for i in range(16)
    ]
    loc, scale = guide.loc.detach().squeeze(-1), F.softplus(guide.raw.detach()).squeeze(-1)
    kl = -scale.log() + 0.5 * (scale**2 + loc**2 - 1)
    tail, weights = tail_by_hand(losses, rho)
    mean = sum(losses) / 16
    expected = 16 * ((1 - tail_weight) * mean + tail_weight * tail + 0.3 * kl.mean().item())
    assert terms.loss.item() == pytest.approx(expected, rel=1e-9)
    assert terms.tail_loss.item() == pytest.approx(tail, rel=1e-9)
    assert terms.mean_loss.item() == pytest.approx(mean, rel=1e-9)
    assert terms.kl.item() == pytest.approx(kl.mean().item(), rel=1e-9)
    assert terms.negative_elbo.item() == pytest.approx(sum(losses) + kl.sum().item(), rel=1e-9)
    assert terms.threshold.item() == pytest.approx(sorted(losses, reverse=True)[max(1, math.ceil(rho * 16)) - 1])
    torch.testing.assert_close(terms.weights, torch.tensor(weights), **TIGHT)
    torch.testing.assert_close(terms.episode_losses, torch.tensor(losses), **TIGHT)
    torch.testing.assert_close(terms.episode_kl, kl, **TIGHT)
    assert not any(t.requires_grad for t in (terms.weights, terms.tail_loss, terms.episode_losses, terms.kl))


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(("particles", "vectorised"), [(1, False), (3, False), (3, True)])
def test_gradient_is_the_finite_difference(rho: float, particles: int, vectorised: bool) -> None:
    y, model, guide = toy_data(), Toy(), ToyGuide(16)
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": vectorised, "max_plate_nesting": 2}
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3, tail_weight=0.8, **options)
    parameters = list(guide.parameters())
    gradient = value_and_gradient(elbo, model, guide, (y,), parameters)[1:]
    step = 1e-5

    def loss() -> float:
        pyro.set_rng_seed(3)
        return elbo.loss(model, guide, y)

    for parameter, found in zip(parameters, gradient, strict=True):
        for row in range(16):
            with torch.no_grad():
                parameter[row] += step
                up = loss()
                parameter[row] -= 2 * step
                down = loss()
                parameter[row] += step
            assert found[row].item() == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-6)


@small_tail
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_closed_form(rho: float, ties: bool) -> None:
    """A point guide: dL/dm_i = B w_i sum_j (m_i - y_ij) / s^2 + lambda m_i, ties sharing what is left of the tail."""
    y = toy_data()
    loc = torch.linspace(-1, 1, 16).unsqueeze(1)
    if ties:  # episodes 2..7 are copies of the worst one, 8..10 of the best
        worst = int((y - loc).square().sum(1).argmax())
        y[2:8], loc[2:8] = y[worst], loc[worst]
        best = int((y - loc).square().sum(1).argmin())
        y[8:11], loc[8:11] = y[best], loc[best]
    guide = PointToyGuide(loc)
    elbo = CVaR_ELBO(rho=rho, kl_weight=0.3)
    gradient = value_and_gradient(elbo, Toy(), guide, (y,), [guide.loc])[1].squeeze(-1)
    losses = [0.5 * ((y[i] - loc[i]) / NOISE).square().sum().item() for i in range(16)]
    _, weights = tail_by_hand(losses, rho)
    if ties:
        assert sum(w > 0 for w in weights) > max(1, math.ceil(rho * 16)) or rho in (1.0, 0.5)
    pull = (loc - y).sum(1) / NOISE**2
    expected = 16 * torch.tensor(weights) * pull + 0.3 * loc.squeeze(-1)
    torch.testing.assert_close(gradient, expected, **TIGHT)


def alternating_guide() -> Callable:
    """Particle 0 is off at the even episodes, particle 1 at the odd ones."""
    calls = [0]

    def guide(y: Tensor) -> None:
        parity = calls[0] % 2
        calls[0] += 1
        loc = torch.where(torch.arange(len(y)).unsqueeze(1) % 2 == parity, 2.0, 0.0)
        with pyro.plate("episodes", len(y), dim=-2):
            pyro.sample("z", dist.Delta(loc))

    return guide


@small_tail
def test_particles_are_averaged_before_the_tail() -> None:
    y = torch.zeros(8, 1)
    miss = 0.5 * (2 / NOISE) ** 2
    floor = math.log(NOISE) + 0.5 * math.log(2 * math.pi)
    elbo = CVaR_ELBO(rho=0.5, kl_weight=0.0, num_particles=2)
    found = elbo.loss(Toy(), alternating_guide(), y)
    assert found == pytest.approx(8 * (floor + miss / 2), rel=1e-12)
    one, guide = CVaR_ELBO(rho=0.5, kl_weight=0.0), alternating_guide()
    other_order = (one.loss(Toy(), guide, y) + one.loss(Toy(), guide, y)) / 2
    assert other_order == pytest.approx(8 * (floor + miss), rel=1e-12)


def test_tail_over_regret() -> None:
    """Weights come from X - r; r is a number: no gradient reaches the parameter that it was computed from."""
    y, model, guide = toy_data(), Toy(), PointToyGuide(torch.linspace(-1, 1, 16).unsqueeze(1))
    shift = nn.Parameter(torch.tensor(1.0))
    seen = []

    def reference(batch: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return shift * batch.square().sum(1)

    elbo = CVaR_ELBO(rho=0.5, reference=reference, kl_weight=0.0, tail_weight=0.6)
    terms = elbo.terms(model, guide, y)
    losses = (
        0.5 * ((y - guide.loc) / NOISE).square().sum(1) + 3 * (math.log(NOISE) + 0.5 * math.log(2 * math.pi))
    ).detach()
    regret = losses - y.square().sum(1)
    tail, weights = tail_by_hand(regret.tolist(), 0.5)
    assert terms.tail_loss.item() == pytest.approx(tail)
    torch.testing.assert_close(terms.weights, torch.tensor(weights), **TIGHT)
    assert not torch.equal(terms.weights > 0, torch.tensor(tail_by_hand(losses.tolist(), 0.5)[1]) > 0)
    assert terms.loss.item() == pytest.approx(16 * (0.4 * losses.mean().item() + 0.6 * tail))
    terms.loss.backward()
    assert shift.grad is None
    assert seen == [False]
    pull = (guide.loc.detach() - y).sum(1) / NOISE**2
    expected = 16 * (0.4 / 16 + 0.6 * torch.tensor(weights)) * pull
    torch.testing.assert_close(guide.loc.grad.squeeze(-1), expected, **TIGHT)  # type: ignore[union-attr]


def test_small_tail_warns_once() -> None:
    y, elbo = toy_data(), CVaR_ELBO(rho=0.25)
    with pytest.warns(UserWarning, match=r"rho x B = 0.25 x 16 < 5"):
        elbo.loss(Toy(), ToyGuide(16), y)
    elbo.loss(Toy(), ToyGuide(16), y)  # warnings are errors here
    CVaR_ELBO(rho=5 / 16).loss(Toy(), ToyGuide(16), y)
    CVaR_ELBO(rho=0.01, tail_weight=0.0).loss(Toy(), ToyGuide(16), y)


def test_nan_loss_warns() -> None:
    y = toy_data()
    elbo = CVaR_ELBO(rho=1.0, episode_loss=lambda fn, labels, mask: fn.log_prob(labels) * math.nan)
    with pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(elbo.loss(Toy(), ToyGuide(16), y))
