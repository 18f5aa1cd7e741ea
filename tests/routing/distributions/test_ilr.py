"""What holds for every contrast distribution: normalised densities, draws and means that belong to them, shapes."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from ilr_grid import FAMILIES, expectation, family, grid
from pyro import poutine
from torch import Tensor

from pyro_smat.routing import ilr_basis, softmax_of_ilr
from pyro_smat.routing.distributions import ILRNormal
from pyro_smat.routing.distributions.ilr import log_jacobian, log_weights, standard_exponential


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_density_is_normalised_and_has_the_mean_weights(name: str, size: int) -> None:
    distribution = family(name, size)
    points, weight = grid(size)
    total = expectation(distribution, torch.ones(len(points), dtype=torch.float64), points, weight)
    assert total.item() == pytest.approx(1.0, abs=1e-7)
    mean = expectation(distribution, softmax_of_ilr(points), points, weight)
    by_quasi_monte_carlo = name in ("normal", "low_rank", "concrete", "mixture")
    torch.testing.assert_close(distribution.mean_weights(), mean, rtol=0, atol=3e-3 if by_quasi_monte_carlo else 1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_belong_to_the_density(name: str) -> None:
    """Means and second moments of smooth functions of 200 000 draws against quadrature."""
    distribution = family(name, 3)
    points, weight = grid(3)

    def features(u: Tensor) -> Tensor:
        w = softmax_of_ilr(u)
        return torch.cat([u.sin(), u.cos(), w, w.square(), w[:, :1] * w[:, 1:2], torch.tanh(u[:, :1] * u[:, 1:])], -1)

    exact = expectation(distribution, features(points), points, weight)
    drawn = features(distribution.sample((200_000,), torch.Generator().manual_seed(0)))
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mixture"])
def test_mode_maximises_the_density(name: str, size: int) -> None:
    distribution = family(name, size)
    weights = distribution.mode_weights()
    at = (weights.log() @ ilr_basis(size, weights)).requires_grad_()
    top = distribution.log_prob(at)
    (slope,) = torch.autograd.grad(top, at)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)
    assert (distribution.log_prob(distribution.sample((2000,), torch.Generator().manual_seed(0))) <= top).all()


@pytest.mark.parametrize("size", [2, 3, 6])
def test_jacobian_of_weights_in_ilr(size: int) -> None:
    u = torch.randn(size - 1, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    matrix = torch.func.jacrev(lambda u: softmax_of_ilr(u)[:-1])(u)
    torch.testing.assert_close(log_jacobian(log_weights(u)), torch.linalg.slogdet(matrix).logabsdet)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_generators(name: str) -> None:
    distribution = family(name, 4)
    assert (distribution.size, distribution.event_shape, distribution.batch_shape) == (4, (3,), ())
    wide = distribution.expand((5, 2))
    assert type(wide) is type(distribution)
    assert wide.batch_shape == (5, 2)
    assert wide.event_shape == (3,)
    before = torch.get_rng_state()
    draws = wide.sample((7,), torch.Generator().manual_seed(1))
    assert draws.shape == (7, 5, 2, 3)
    assert torch.equal(draws, wide.sample((7,), torch.Generator().manual_seed(1)))
    assert not torch.equal(draws, wide.sample((7,), torch.Generator().manual_seed(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(draws[:, 0], draws[:, 1])
    assert wide.log_prob(draws).shape == (7, 5, 2)
    torch.testing.assert_close(wide.log_prob(draws), distribution.log_prob(draws))
    assert wide.log_prob(draws[0, 0, 0]).shape == (5, 2)
    for weights in (wide.mean_weights(), wide.mode_weights()):
        assert weights.shape == (5, 2, 4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2, dtype=torch.float64))
    torch.testing.assert_close(wide.mean_weights()[3, 1], distribution.mean_weights())
    assert type(distribution).__name__ in repr(wide)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_carry_a_gradient_or_say_that_they_do_not(name: str) -> None:
    distribution = family(name, 3)
    assert not distribution.sample((2,)).requires_grad
    if distribution.has_rsample:
        same = [draw((2,), torch.Generator().manual_seed(0)) for draw in (distribution.rsample, distribution.sample)]
        assert torch.equal(*same)
    else:
        with pytest.raises(NotImplementedError, match=f"draws of {type(distribution).__name__} have no gradient"):
            distribution.rsample((2,))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_as_a_pyro_site(name: str, blocks: int) -> None:
    distribution = family(name, 3)
    site = distribution if blocks == 1 else distribution.expand((blocks,)).to_event(1)

    def program() -> Tensor:
        with pyro.plate("episodes", 4, dim=-2):
            return pyro.sample("u", site)

    pyro.set_rng_seed(0)
    trace = poutine.trace(program).get_trace()
    event = (2,) if blocks == 1 else (3, 2)
    value = trace.nodes["u"]["value"]
    assert value.shape == (4, 1, *event)
    total = distribution.log_prob(value.reshape(-1, 2)).sum()
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_exponential_draws_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """One uniform in 2^24 rounds to 0; its draw stands for the smallest exponentials and keeps a finite logarithm."""
    drawn = standard_exponential((100_000,), torch.zeros(()), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator: self.zero_())
    for dtype, bits in ((torch.float32, 24), (torch.float64, 53)):
        assert standard_exponential((), torch.zeros((), dtype=dtype), None).item() == 2.0 ** -(bits + 1)


def test_mean_weights_in_inference_mode_then_with_a_gradient() -> None:
    """The quasi-random points are made once; whoever asks first must not take autograd away from the next."""
    with torch.inference_mode():
        ILRNormal.from_logits(torch.zeros(9), torch.ones(9)).mean_weights()
    loc = torch.zeros(9, requires_grad=True)
    mean = ILRNormal.from_logits(loc, torch.ones(9)).mean_weights()
    (slope,) = torch.autograd.grad(mean[0], loc)
    assert slope[0] > 0.02
    torch.testing.assert_close(slope.sum(), torch.tensor(0.0), rtol=0, atol=1e-6)
