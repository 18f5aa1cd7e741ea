"""Dirichlet posteriors: against torch's own Dirichlet, and the range of the guide's concentrations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_posteriors import random_posterior
from torch.distributions import Dirichlet, kl_divergence

from pyro_smat.encoders import EvidenceEncoder
from pyro_smat.guides import DirichletGuide, DirichletPosterior
from pyro_smat.models.priors import DirichletPrior


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_torchs_dirichlet(blocks: int) -> None:
    q = random_posterior("dirichlet", 3, 2, blocks)
    assert isinstance(q, DirichletPosterior)
    a, b = q.concentration, torch.linspace(0.3, 2.5, 5, dtype=torch.float64)
    draws = q.sample(9, torch.Generator().manual_seed(0))
    log_prob, kl, means = torch.zeros(()), torch.zeros(()), []
    for part in (slice(0, 3), slice(3, 5)):
        reference, w = Dirichlet(a[..., part]), draws[..., part]
        log_prob = log_prob + reference.log_prob(w) + w.log().sum(-1) + 0.5 * math.log(w.shape[-1])
        kl = kl + kl_divergence(reference, Dirichlet(b[part]))
        means.append(reference.mean)
    torch.testing.assert_close(q.mean, torch.cat(means, -1))
    torch.testing.assert_close(q.log_prob(draws), log_prob if blocks == 1 else log_prob.sum(-1))
    torch.testing.assert_close(
        q.kl(DirichletPrior(3, 2, concentration=b, num_blocks=blocks)), kl if blocks == 1 else kl.sum(-1)
    )


def test_variance_of_draws() -> None:
    q = random_posterior("dirichlet", 4, 0)
    assert isinstance(q, DirichletPosterior)
    reference = Dirichlet(q.concentration)
    draws = q.sample(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.var(0), reference.variance, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_fresh_guide_starts_at_its_concentration(blocks: int, make_router: Callable) -> None:
    """Entries sum to about n x concentration, plus the floor of 0.1 each."""
    batch = make_router("dirichlet").batch
    torch.manual_seed(0)
    guide = DirichletGuide(3, 2, num_blocks=blocks, encoder=EvidenceEncoder(8), concentration=5.0).double()
    q = guide.posterior(batch)
    for part in (slice(0, 3), slice(3, 5)):
        a = q.concentration[..., part]
        assert (a >= 0.1).all()
        torch.testing.assert_close(a.sum(-1) / a.shape[-1], torch.full_like(a[..., 0], 5.1), rtol=0.1, atol=0)
    assert q.concentration.shape == ((4, 5) if blocks == 1 else (4, 2, 5))


def test_gradient_of_draws_by_finite_differences() -> None:
    """d E[f(w)] / d a, reparameterised, against the exact derivative of the mean of w_0."""
    a = torch.tensor([[0.7, 1.5, 2.0]], dtype=torch.float64, requires_grad=True)
    draws = DirichletPosterior(a, 3).sample(200_000, torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(draws[..., 0].mean(), a)
    (expected,) = torch.autograd.grad((a[:, 0] / a.sum(-1)).sum(), a)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.005)


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"concentration is 0.0; expected > 0"):
        DirichletGuide(3, concentration=0.0)
