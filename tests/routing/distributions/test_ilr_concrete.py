"""ILRConcrete: another library's density, the exact KL, and low temperatures in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ilr_grid import grid
from scipy import integrate, special
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_smat.routing.distributions import ILRConcrete
from pyro_smat.routing.distributions.concrete import mean_log_hyperexponential
from pyro_smat.routing.distributions.ilr import log_weights


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_density_is_torchs_in_other_coordinates(temperature: float) -> None:
    """torch's density is that of n - 1 log weights; the ILR coordinates stretch it by sqrt(n)."""
    logits, u = numbers(4, 5), 2 * numbers(4, 4, seed=1)
    reference = ExpRelaxedCategorical(torch.tensor(temperature, dtype=torch.float64), logits=logits)
    expected = reference.log_prob(log_weights(u)) + 0.5 * math.log(5)
    torch.testing.assert_close(ILRConcrete(logits, temperature).log_prob(u), expected)
    torch.testing.assert_close(ILRConcrete(logits + 3.0, temperature).log_prob(u), expected)


def test_one_temperature_an_episode() -> None:
    logits, temperature = numbers(5, 1, 3), torch.linspace(0.2, 3.0, 5, dtype=torch.float64).unsqueeze(-1)
    both = ILRConcrete(logits, temperature)
    u = both.rsample((2,), torch.Generator().manual_seed(0))
    assert u.shape == (2, 5, 1, 2)
    for i in range(5):
        alone = ILRConcrete(logits[i], temperature[i])
        torch.testing.assert_close(both.log_prob(u)[:, i], alone.log_prob(u[:, i]))
        torch.testing.assert_close(both.mean_weights()[i], alone.mean_weights())
    torch.testing.assert_close(both.mode_weights(), (logits / temperature.unsqueeze(-1)).softmax(-1))


def test_low_temperature_is_finite_in_float32_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (40 * torch.rand(500, 6, generator=generator) - 20).requires_grad_()
    temperature = torch.full((500,), 0.05, requires_grad=True)
    q = ILRConcrete(logits, temperature)
    u = q.rsample((), generator)
    p = ILRConcrete(torch.zeros(6), 0.05)
    outputs = [
        u.sum(),
        q.log_prob(u).sum(),
        p.log_prob(u).sum(),
        q.mean_weights()[:, 0].sum(),
        kl_divergence(q, p).sum(),
    ]
    for output in outputs:
        slopes = torch.autograd.grad(output, (logits, temperature), retain_graph=True, allow_unused=True)
        assert torch.isfinite(output)
        assert all(slope is None or torch.isfinite(slope).all() for slope in slopes)
    exact = ILRConcrete(logits.double(), temperature.double())
    torch.testing.assert_close(q.log_prob(u).double(), exact.log_prob(u.double()), rtol=1e-4, atol=1e-2)


def test_draws_have_the_gradient_of_their_parameters() -> None:
    logits, temperature = numbers(2, 3).requires_grad_(), numbers(2, seed=1).exp().requires_grad_()

    def draw(logits: Tensor, temperature: Tensor) -> Tensor:
        return ILRConcrete(logits, temperature).rsample((2,), torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(draw, (logits, temperature))


@pytest.mark.parametrize("rates", [[1.0, 1.0], [1.0, 0.3], [2.0, 1e-6, 5.0], [3.0, 3.0, 3.0, 0.5], [1e-30, 1.0]])
def test_mean_logarithm_of_weighted_exponentials(rates: list[float]) -> None:
    """Against adaptive quadrature of Frullani's integral with the other reference, exp(-t)."""

    def integrand(s: float) -> float:
        return math.exp(-math.exp(s)) - float(np.prod([1 / (1 + r * math.exp(s)) for r in rates]))

    expected = integrate.quad(integrand, -40, 80, points=[0.0], limit=500, epsabs=1e-12)[0]
    found = mean_log_hyperexponential(torch.tensor(rates, dtype=torch.float64).log())
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [2, 7, 100])
def test_mean_logarithm_of_equal_rates_is_that_of_a_gamma(size: int) -> None:
    found = mean_log_hyperexponential(torch.full((size,), 1.5, dtype=torch.float64))
    assert found.item() == pytest.approx(1.5 + special.digamma(size), abs=1e-12)
    single = mean_log_hyperexponential(torch.full((size,), 1.5))
    assert single.item() == pytest.approx(1.5 + special.digamma(size), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_kl_by_quadrature_is_the_same_at_every_temperature(temperature: float) -> None:
    """n = 3; the grid is shrunk with the draws, whose ILR coordinates grow like 1 / T."""
    q = ILRConcrete(torch.tensor([0.9, -0.4, 0.2], dtype=torch.float64), temperature)
    p = ILRConcrete(torch.tensor([-0.5, 0.8, 0.1], dtype=torch.float64), temperature)
    points, weight = grid(3)
    points, weight = points / temperature, weight / temperature**2
    log_q = q.log_prob(points)
    by_grid = (log_q.exp() * (log_q - p.log_prob(points))).sum() * weight
    torch.testing.assert_close(kl_divergence(q, p), by_grid, rtol=0, atol=1e-8)


def test_kl_of_distinct_logits_by_the_closed_form_and_by_monte_carlo() -> None:
    n = 5
    q, p = ILRConcrete(2 * numbers(n), 0.7), ILRConcrete(2 * numbers(n, seed=1), 0.7)
    ratio = (p.logits.log_softmax(-1) - q.logits.log_softmax(-1)).exp().tolist()
    harmonic = sum(1 / k for k in range(1, n))
    mean_log = sum(
        r ** (n - 1) * (math.log(r) - harmonic) / math.prod(r - other for other in ratio if other != r) for r in ratio
    )
    expected = -sum(math.log(r) for r in ratio) + n * mean_log
    assert kl_divergence(q, p).item() == pytest.approx(expected, rel=1e-9)
    u = q.sample((200_000,), torch.Generator().manual_seed(0))
    terms = q.log_prob(u) - p.log_prob(u)
    assert terms.mean().item() == pytest.approx(expected, abs=5 * terms.std().item() / math.sqrt(len(u)))
    assert expected > kl_divergence(Categorical(logits=q.logits), Categorical(logits=p.logits)).item()


def test_kl_is_zero_for_itself_shifts_and_differentiable_at_ties() -> None:
    logits = numbers(3, 4)
    q = ILRConcrete(logits, 0.5)
    torch.testing.assert_close(
        kl_divergence(q, ILRConcrete(logits + 2.0, 0.5)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )

    def kl(logits: Tensor, other: Tensor) -> Tensor:
        return kl_divergence(ILRConcrete(logits, 0.5), ILRConcrete(other, 0.5))

    tied = torch.zeros(2, 4, dtype=torch.float64)
    inputs = (torch.cat([tied, numbers(1, 4)]).requires_grad_(), torch.cat([numbers(1, 4), tied]).requires_grad_())
    assert torch.autograd.gradcheck(kl, inputs)
    assert torch.autograd.gradgradcheck(kl, inputs)


def test_kl_at_other_temperatures_is_left_to_monte_carlo() -> None:
    q = ILRConcrete(torch.zeros(2, 3), torch.tensor([0.5, 1.0]))
    assert kl_divergence(q, ILRConcrete(torch.zeros(2, 3), torch.tensor([0.5, 1.0]))).shape == (2,)
    with pytest.raises(NotImplementedError, match="equal temperatures only"):
        kl_divergence(q, ILRConcrete(torch.zeros(3), 0.5))


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(3, 1\); expected \(\*b, n\), n >= 2"):
        ILRConcrete(torch.zeros(3, 1), 1.0)
    with pytest.raises(
        ValueError, match=r"temperature has shape \(5, 1\) and logits \(5, 3\); expected one temperature"
    ):
        ILRConcrete(torch.zeros(5, 3), torch.ones(5, 1))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"temperature has entries down to .*; expected > 0"):
            ILRConcrete(torch.zeros(5, 3), bad)
