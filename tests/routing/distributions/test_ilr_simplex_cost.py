"""ILRSimplexCost: the uniform limit, exact draws at any beta, expected costs and the KL of a Dirichlet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ilr_grid import grid
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.routing import softmax_of_ilr
from pyro_smat.routing.distributions import ILRDirichlet, ILRSimplexCost
from pyro_smat.routing.distributions.ilr import log_weights
from pyro_smat.routing.distributions.simplex_exponential import log_mean_exponential

COSTS = torch.tensor([0.4, -1.0, 2.0, 0.4, 1.1], dtype=torch.float64)


def prior(beta: float, size: int = 5) -> ILRSimplexCost:
    return ILRSimplexCost(COSTS[:size], torch.tensor(beta, dtype=torch.float64))


def test_beta_0_is_the_uniform_distribution() -> None:
    uniform = ILRDirichlet(torch.ones(5, dtype=torch.float64))
    u = uniform.sample((50,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior(0.0).log_prob(u), uniform.log_prob(u))
    torch.testing.assert_close(prior(0.0).mean_weights(), uniform.mean_weights())
    torch.testing.assert_close(prior(0.0).mode_weights(), uniform.mode_weights())


def test_log_density_falls_by_beta_a_unit_of_cost() -> None:
    u = prior(1.0).sample((50,), torch.Generator().manual_seed(0))
    w = softmax_of_ilr(u)
    excess = prior(2.5).log_prob(u) - prior(0.0).log_prob(u) + 2.5 * (w @ COSTS)
    torch.testing.assert_close(excess, excess[:1].expand(50))


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0, 80.0, 1e5])
@pytest.mark.parametrize("size", [3, 5, 30])
def test_draws_have_the_moments_of_the_density(beta: float, size: int) -> None:
    """Mean and covariance of the weights are the first two derivatives of ln Z."""
    generator = torch.Generator().manual_seed(size)
    costs = torch.randn(size, generator=generator, dtype=torch.float64)
    distribution = ILRSimplexCost(costs, torch.tensor(beta, dtype=torch.float64))
    w = softmax_of_ilr(distribution.sample((20_000,), generator))
    covariance = torch.autograd.functional.hessian(log_mean_exponential, -beta * costs)
    assert isinstance(covariance, Tensor)
    deviation = covariance.diagonal().sqrt()
    z = (w.mean(0) - distribution.mean_weights()) / deviation * math.sqrt(len(w))
    assert z.abs().max() < 4.5
    torch.testing.assert_close(w.var(0) / deviation.square(), torch.ones_like(z), rtol=0, atol=0.15)


@pytest.mark.parametrize("beta", [0.0, 3.0, 40.0])
def test_draws_of_two_weights_are_truncated_exponentials(beta: float) -> None:
    distribution = ILRSimplexCost(torch.tensor([0.5, -0.5], dtype=torch.float64), beta)
    w = softmax_of_ilr(distribution.sample((5000,), torch.Generator().manual_seed(0)))[:, 0].numpy()

    def cdf(x: np.ndarray) -> np.ndarray:
        return np.expm1(-beta * x) / np.expm1(-beta) if beta else x

    assert stats.kstest(w, cdf).pvalue > 0.01


def test_draws_in_float32() -> None:
    distribution = ILRSimplexCost(COSTS.float(), 1e4)
    draws = distribution.sample((1000,), torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float32
    assert torch.isfinite(distribution.log_prob(draws)).all()
    assert softmax_of_ilr(draws)[:, 1].min() > 0.99


def test_at_least_one_in_a_few_draws_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rounds of the rejection stays small at every beta, even with a hundred weights."""
    rounds = 0
    softmax = Tensor.softmax

    def counting(self: Tensor, dim: int) -> Tensor:
        nonlocal rounds
        rounds += 1
        return softmax(self, dim)

    costs = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    monkeypatch.setattr(Tensor, "softmax", counting)
    for beta in (0.0, 10.0, 1e3, 1e6):
        rounds = 0
        ILRSimplexCost(costs, beta).sample((300,), torch.Generator().manual_seed(0))
        assert rounds < 150


def test_expected_cost_is_the_slope_of_the_normaliser() -> None:
    for value in (0.0, 0.7, 30.0):
        beta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        distribution = ILRSimplexCost(COSTS, beta)
        (slope,) = torch.autograd.grad(distribution.log_normaliser(), beta)
        torch.testing.assert_close(distribution.expected_cost(), -slope)
        torch.testing.assert_close(distribution.mean_weights() @ COSTS, distribution.expected_cost())
    assert prior(0.0).expected_cost().item() == pytest.approx(COSTS.mean().item())
    assert prior(1e7).expected_cost().item() == pytest.approx(-1.0, abs=1e-5)


def test_gradients_in_beta() -> None:
    u = prior(1.0).sample((4,), torch.Generator().manual_seed(0))
    a = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)

    def quantities(beta: Tensor) -> tuple[Tensor, ...]:
        p = ILRSimplexCost(COSTS, beta)
        return (
            p.log_prob(u),
            p.expected_cost(),
            p.mean_weights(),
            p.mode_weights(),
            kl_divergence(ILRDirichlet(a), p),
        )

    for value in (0.3, 20.0):
        assert torch.autograd.gradcheck(quantities, torch.tensor(value, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("beta", [0.0, 2.0, 15.0])
def test_kl_of_a_dirichlet_by_quadrature(beta: float) -> None:
    q = ILRDirichlet(torch.tensor([0.8, 2.0, 1.1], dtype=torch.float64))
    p = prior(beta, 3)
    points, weight = grid(3)
    log_q = q.log_prob(points)
    w = log_weights(points).exp()
    inside = (p.costs * w).sum(-1)  # of the density by hand, without ln Z
    by_hand = math.lgamma(3) - beta * inside + log_weights(points).sum(-1) + 0.5 * math.log(3)
    mass = by_hand.exp().sum() * weight
    by_grid = (log_q.exp() * (log_q - by_hand + mass.log())).sum() * weight
    torch.testing.assert_close(kl_divergence(q, p), by_grid, rtol=0, atol=1e-7)


def test_kl_broadcasts() -> None:
    q = ILRDirichlet(torch.ones(4, 1, 5, dtype=torch.float64))
    assert kl_divergence(q, prior(1.0)).shape == (4, 1)
    assert kl_divergence(q, prior(1.0).expand((4, 3))).shape == (4, 3)
    single = ILRDirichlet(torch.ones(5, dtype=torch.float64))
    assert kl_divergence(single, prior(1.0).expand((4, 3))).shape == (4, 3)
    in_blocks = ILRDirichlet(q.concentration.unsqueeze(-2)).expand((4, 1, 3)).to_event(1)
    blockwise = kl_divergence(in_blocks, prior(1.0).expand((3,)).to_event(1))
    torch.testing.assert_close(blockwise, 3 * kl_divergence(q, prior(1.0)))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: ILRSimplexCost(COSTS[:1], 1.0), r"costs has shape \(1,\); expected \(\*b, n\), n >= 2"),
    (lambda: ILRSimplexCost(COSTS.expand(2, 5), 1.0), "expected a vector of finite numbers"),
    (lambda: ILRSimplexCost(torch.tensor([1.0, math.inf]), 1.0), r"costs are \[1.0, inf\]; expected a vector"),
    (lambda: ILRSimplexCost(COSTS, -1.0), "beta is -1.0; expected one finite number >= 0"),
    (lambda: ILRSimplexCost(COSTS, math.inf), "beta is inf; expected one finite number >= 0"),
    (lambda: ILRSimplexCost(COSTS, torch.ones(2)), r"beta is \[1.0, 1.0\]; expected one finite number >= 0"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number: int) -> None:
    make, message = REFUSED[number]
    with pytest.raises(ValueError, match=message):
        make()
