"""ln E exp(x . w) over the simplex: against exact arithmetic on many digits, closed forms, and its own derivatives."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from pyro_smat.routing.distributions.simplex_exponential import log_mean_exponential, saddle_point, tilted_mean


def by_divided_differences(x: list[float]) -> float:
    """The textbook sum over distinct nodes, ties moved apart by 1e-25, in enough digits to cancel."""
    with localcontext() as context:
        context.prec = 40 + 30 * len(x)
        nodes = [Decimal(value) + Decimal(k) * Decimal("1e-25") for k, value in enumerate(x)]
        total = Decimal(0)
        for k, node in enumerate(nodes):
            total += node.exp() / math.prod((node - other for other in nodes[:k] + nodes[k + 1 :]), start=Decimal(1))
        return float((total * math.factorial(len(x) - 1)).ln())


def cases() -> list[list[float]]:
    found = []
    for size in (2, 3, 6, 15):
        spread = torch.rand(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
        for reach in (1e-3, 5.0, 50.0, 1e4):
            found += [
                (-reach * spread).tolist(),
                [0.0] + [-reach] * (size - 1),
                [0.0] * (size - 1) + [-reach],
                [0.0] * (size // 2) + [-reach] * (size - size // 2),
            ]
    return [*found, [3.0, 3.0, 3.0], [700.0, -700.0], [0.0, 1e6], [-5.0, 5.0 + 1e-9, 5.0]]


def test_against_many_digits() -> None:
    for x in cases():
        found = log_mean_exponential(torch.tensor(x, dtype=torch.float64)).item()
        assert found == pytest.approx(by_divided_differences(x), rel=1e-13, abs=1e-13), x


@pytest.mark.parametrize("size", [2, 5, 10])
def test_against_the_matrix_exponential(size: int) -> None:
    """Opitz: the divided difference is the corner of exp(diag(x) + superdiagonal of ones)."""
    x = 3 * torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    corner = torch.linalg.matrix_exp(x.diag() + torch.ones(size - 1, dtype=torch.float64).diag(1))[0, -1]
    torch.testing.assert_close(log_mean_exponential(x), corner.log() + math.lgamma(size))


@pytest.mark.parametrize("size", [2, 10, 100, 1000])
def test_ties(size: int) -> None:
    """All alike: exp(x . w) is a constant and the mean is even."""
    for value in (0.0, -2.5):
        x = torch.full((size,), value, dtype=torch.float64)
        torch.testing.assert_close(log_mean_exponential(x), x[0], rtol=0, atol=2e-12)
        torch.testing.assert_close(tilted_mean(x), torch.full_like(x, 1 / size), rtol=1e-11, atol=0)


def test_two_entries_in_closed_form() -> None:
    for gap in (1e-8, 0.1, 3.0, 60.0, 1e3):
        x = torch.tensor([-gap, 0.0], dtype=torch.float64)
        assert log_mean_exponential(x).item() == pytest.approx(math.log(-math.expm1(-gap) / gap), rel=1e-12, abs=1e-14)
    x = torch.tensor([-60.0, 0.0], dtype=torch.float64)
    assert tilted_mean(x)[0].item() == pytest.approx(1 / 60 - 1 / math.expm1(60), rel=1e-12)


def test_batches_and_float32() -> None:
    x = 10 * torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = log_mean_exponential(x)
    assert together.shape == (4, 3)
    for i in range(4):
        torch.testing.assert_close(together[i, 1], log_mean_exponential(x[i, 1]))
    torch.testing.assert_close(log_mean_exponential(x.float()), together.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tilted_mean(x.float()), tilted_mean(x).float(), rtol=1e-5, atol=1e-7)


def test_mean_is_the_gradient_and_has_one_itself() -> None:
    spread = 8 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ties = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -30.0, -30.0, 0.0]], dtype=torch.float64)
    x = torch.cat([spread, ties]).requires_grad_()
    (slope,) = torch.autograd.grad(log_mean_exponential(x).sum(), x)
    torch.testing.assert_close(tilted_mean(x), slope, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(slope.sum(-1), torch.ones(7, dtype=torch.float64))
    assert torch.autograd.gradcheck(log_mean_exponential, x)
    assert torch.autograd.gradcheck(tilted_mean, x)


def test_saddle_point() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, -1e6, -3.0], [4.0, 4.0, 3.0]], dtype=torch.float64)
    point = saddle_point(x)
    assert ((point >= 1) & (point <= 3)).all()
    weights: Tensor = 1 / (point + x.amax(-1, keepdim=True) - x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, dtype=torch.float64))
