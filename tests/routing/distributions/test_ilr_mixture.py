"""ILRMixture: its density by hand, blocks, weights of a batch, and the bound on the KL to it."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from ilr_grid import family
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.routing.distributions import ILRDirichlet, ILRMixture, ILRNormal


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def narrow(*centres: float) -> list[ILRNormal]:
    scale = torch.full((3,), 0.01, dtype=torch.float64)
    return [ILRNormal.from_logits(torch.tensor([c, 0.0, 0.0], dtype=torch.float64), scale) for c in centres]


def test_density_is_the_weighted_sum() -> None:
    parts = [family(name, 4) for name in ("normal", "dirichlet", "concrete")]
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    u = numbers(10, 3)
    expected = sum(share * part.log_prob(u).exp() for share, part in zip(shares, parts, strict=True))
    found = ILRMixture(shares.log() + 7.0, parts).log_prob(u)
    torch.testing.assert_close(found, torch.as_tensor(expected).log())
    alone = ILRMixture(torch.tensor([-math.inf, 0.0, -math.inf], dtype=torch.float64), parts)
    torch.testing.assert_close(alone.log_prob(u), parts[1].log_prob(u))


def test_weights_of_a_batch() -> None:
    log_weights, parts = numbers(5, 1, 2), [family("normal", 3), family("dirichlet", 3).expand((1, 1))]
    together = ILRMixture(log_weights, parts)
    assert together.batch_shape == (5, 1)
    u = numbers(5, 1, 2, seed=1)
    for i in range(5):
        alone = ILRMixture(log_weights[i, 0], [family("normal", 3), family("dirichlet", 3)])
        torch.testing.assert_close(together.log_prob(u)[i, 0], alone.log_prob(u[i, 0]))
        torch.testing.assert_close(together.mean_weights()[i, 0], alone.mean_weights())
        torch.testing.assert_close(together.mode_weights()[i, 0], alone.mode_weights())


def test_one_component_is_drawn_for_all_blocks() -> None:
    left, right = narrow(-9.0, 9.0)
    blocks = [part.expand((4,)).to_event(1) for part in (left, right)]
    mixture = ILRMixture(torch.tensor([0.3, 0.7], dtype=torch.float64).log(), blocks)
    assert (mixture.event_shape, mixture.size) == ((4, 2), 3)
    draws = mixture.sample((20_000,), torch.Generator().manual_seed(0))
    assert draws.shape == (20_000, 4, 2)
    is_right = draws[..., 0] > 0
    assert (is_right.all(-1) | (~is_right).all(-1)).all()
    assert is_right[:, 0].double().mean().item() == pytest.approx(0.7, abs=0.015)
    u = draws[:6]
    expected = torch.stack([math.log(0.3) + left.log_prob(u).sum(-1), math.log(0.7) + right.log_prob(u).sum(-1)])
    torch.testing.assert_close(mixture.log_prob(u), expected.logsumexp(0))
    mean = 0.3 * left.mean_weights() + 0.7 * right.mean_weights()
    torch.testing.assert_close(mixture.mean_weights(), mean.expand(4, 3))
    torch.testing.assert_close(mixture.mode_weights(), right.mode_weights().expand(4, 3))
    wide = mixture.expand((5, 1))
    assert wide.sample((2,)).shape == (2, 5, 1, 4, 2)
    assert wide.mean_weights().shape == wide.mode_weights().shape == (5, 1, 4, 3)


def test_mode_of_separate_components_is_the_highest() -> None:
    parts = [*narrow(-9.0), ILRNormal.from_logits(torch.zeros(3).double(), torch.full((3,), 0.5).double())]
    mixture = ILRMixture(torch.tensor([0.3, 0.7], dtype=torch.float64).log(), parts)
    torch.testing.assert_close(mixture.mode_weights(), parts[0].mode_weights())


def test_kl_bound_lies_between_the_kl_and_the_nearest_component() -> None:
    parts = [ILRDirichlet(numbers(4, seed=seed).exp()) for seed in (1, 2, 3)]
    log_weights = numbers(3, seed=4).log_softmax(-1)
    q = ILRDirichlet(numbers(6, 4).exp())
    mixture = ILRMixture(log_weights, parts, bound=True)
    bound = kl_divergence(q, mixture)
    each = torch.stack([kl_divergence(q, part) for part in parts], dim=-1)
    torch.testing.assert_close(bound, -(log_weights.exp() * (-each).exp()).sum(-1).log())
    u = q.sample((100_000,), torch.Generator().manual_seed(0))
    terms = q.log_prob(u) - mixture.log_prob(u)
    assert (terms.mean(0) - 4 * terms.std(0) / math.sqrt(len(u)) < bound).all()
    assert (bound <= (each - log_weights).min(-1).values).all()


def test_kl_bound_is_exact_for_equal_components_blocks_and_points() -> None:
    p, q = ILRDirichlet(numbers(4).exp()), ILRDirichlet(numbers(5, 1, 4, seed=1).exp())
    same = ILRMixture(torch.zeros(2, dtype=torch.float64), [p, p], bound=True)
    torch.testing.assert_close(kl_divergence(q, same), kl_divergence(q, p))
    blocks = ILRMixture(torch.zeros(2, dtype=torch.float64), [p.expand((3,)).to_event(1)] * 2, bound=True)
    in_blocks = ILRDirichlet(q.concentration.unsqueeze(-2))
    found = kl_divergence(in_blocks.expand((5, 1, 3)).to_event(1), blocks)
    torch.testing.assert_close(found, 3 * kl_divergence(q, p))
    mixture = ILRMixture(numbers(2), [p, family("normal", 4)])
    point = numbers(5, 1, 3)
    torch.testing.assert_close(kl_divergence(dist.Delta(point, event_dim=1), mixture), -mixture.log_prob(point))


def test_kl_without_a_closed_form_is_left_to_monte_carlo() -> None:
    parts = [family("dirichlet", 3), family("normal", 3)]
    weights = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="a ILRMixture with bound=True bounds it"):
        kl_divergence(parts[0], ILRMixture(weights, parts))
    with pytest.raises(NotImplementedError, match="ILRDirichlet and q type ILRNormal"):
        kl_divergence(parts[0], ILRMixture(weights, parts, bound=True))


def test_gradients_reach_the_weights_and_the_components() -> None:
    u = numbers(3, 2)

    def log_prob(log_weights: Tensor, loc: Tensor, concentration: Tensor) -> Tensor:
        parts = [ILRNormal.from_logits(loc, torch.ones_like(loc)), ILRDirichlet(concentration)]
        return ILRMixture(log_weights, parts).log_prob(u)

    inputs = (numbers(2).requires_grad_(), numbers(3).requires_grad_(), numbers(3, seed=1).exp().requires_grad_())
    assert torch.autograd.gradcheck(log_prob, inputs)


def test_refused() -> None:
    parts = [family("normal", 3), family("dirichlet", 4)]
    with pytest.raises(ValueError, match=r"components have event shapes \[\(2,\), \(3,\)\]; expected at least one"):
        ILRMixture(torch.zeros(2), parts)
    with pytest.raises(ValueError, match=r"components have event shapes \[\]"):
        ILRMixture(torch.zeros(0), [])
    with pytest.raises(ValueError, match=r"log_weights have shape \(3,\); expected \(\*b, 2\), one a component"):
        ILRMixture(torch.zeros(3), parts[:1] * 2)
