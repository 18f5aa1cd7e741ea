"""ILRDirichlet: torch's density and KL in other coordinates, the gradient of its draws, tiny concentrations."""

from __future__ import annotations

import math

import pytest
import torch
from ilr_grid import expectation, grid
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_smat.routing import softmax_of_ilr
from pyro_smat.routing.distributions import ILRDirichlet
from pyro_smat.routing.distributions.ilr import log_jacobian, log_weights


def concentrations(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).exp()


def test_density_is_torchs_times_the_jacobian() -> None:
    a = concentrations(4, 5)
    u = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = Dirichlet(a).log_prob(softmax_of_ilr(u)) + log_jacobian(log_weights(u))
    torch.testing.assert_close(ILRDirichlet(a).log_prob(u), expected)


def test_kl_is_torchs() -> None:
    a, b = concentrations(3, 1, 4), concentrations(2, 4, seed=1)
    found = kl_divergence(ILRDirichlet(a), ILRDirichlet(b))
    torch.testing.assert_close(found, kl_divergence(Dirichlet(a.expand(3, 2, 4)), Dirichlet(b.expand(3, 2, 4))))
    torch.testing.assert_close(
        kl_divergence(ILRDirichlet(a), ILRDirichlet(a)),
        torch.zeros(3, 1, dtype=torch.float64),
        atol=1e-12,
        rtol=0,
    )


def test_gradient_of_draws_against_finite_differences_of_quadrature() -> None:
    a = torch.tensor([0.7, 1.4, 3.0], dtype=torch.float64)
    points, weight = grid(3)

    def statistic(u: Tensor) -> Tensor:
        w = softmax_of_ilr(u)
        return w[..., 0].square() + (w[..., 1] * 3).sin() + torch.tanh(u[..., 0] / 2)

    step = 1e-4
    slopes = []
    for entry in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[entry] = step
        above, below = (
            expectation(ILRDirichlet(a + sign * shift), statistic(points), points, weight) for sign in (1, -1)
        )
        slopes.append((above - below) / (2 * step))
    parameter = a.expand(400_000, 3).clone().requires_grad_()
    drawn = ILRDirichlet(parameter).rsample((), torch.Generator().manual_seed(0))
    (each,) = torch.autograd.grad(statistic(drawn).sum(), parameter)
    error = each.std(0) / math.sqrt(len(each))
    assert ((each.mean(0) - torch.stack(slopes)).abs() < 4 * error).all()
    assert (error < 0.01 * torch.stack(slopes).abs().max()).all()


def test_tiny_concentrations_are_finite_in_float32_with_their_gradient() -> None:
    a = torch.full((5000, 4), 0.01, requires_grad=True)
    q = ILRDirichlet(a)
    u = q.rsample((), torch.Generator().manual_seed(0))
    p = ILRDirichlet(torch.ones(4))
    for output in (u.sum(), q.log_prob(u).sum(), p.log_prob(u).sum(), kl_divergence(q, p).sum()):
        assert torch.isfinite(output)
        (slope,) = torch.autograd.grad(output, a, retain_graph=True)
        assert torch.isfinite(slope).all()
    w = softmax_of_ilr(u.detach())
    assert w.square().sum(-1).mean().item() == pytest.approx(1.01 / 1.04, abs=0.01)  # (a + 1) / (a_0 + 1)
    torch.testing.assert_close(w.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"concentration has shape \(1,\); expected \(\*b, n\), n >= 2"):
        ILRDirichlet(torch.ones(1))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"concentration has entries down to .*; expected > 0"):
            ILRDirichlet(torch.tensor([1.0, bad]))
