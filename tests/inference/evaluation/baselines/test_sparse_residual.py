"""Sparse residuals: the budget, the descent, and problems whose solution is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_smat.inference.evaluation.baselines import BestSource, ComposedLibrary, SingleSource, SparseResidual
from pyro_smat.inference.evaluation.baselines.baseline import value_and_gradient
from pyro_smat.inference.evaluation.baselines.sparse_residual import fit_residual
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary


@pytest.mark.parametrize("nonzeros", [1, 4, 25])
@pytest.mark.parametrize("start", [SingleSource, BestSource])
def test_budget_and_descent(
    nonzeros: int, start: type, composed: ComposedLibrary, make_batch: Callable, support_loss_by_hand: Callable
) -> None:
    batch, before = make_batch(composed), start(composed)
    theta = SparseResidual(before, nonzeros, steps=15).parameters(batch)
    changed = theta != before.parameters(batch)
    assert changed.sum(-1).tolist() == [nonzeros] * len(batch)
    for i in (0, 2, 3):  # the other is one-shot
        assert support_loss_by_hand(theta[i], batch, i) < support_loss_by_hand(before.parameters(batch)[i], batch, i)


def test_start_of_the_residual(composed: ComposedLibrary, make_batch: Callable, support_loss_by_hand: Callable) -> None:
    batch = make_batch(composed)
    best = BestSource(composed).parameters(batch)
    for i in (0, 2, 3):
        losses = torch.stack([support_loss_by_hand(row, batch, i) for row in composed.sources])
        assert torch.equal(best[i], composed.sources[losses.argmin()])
    assert SparseResidual(SingleSource(composed), 3).name == "source: source0 + sparse residual"
    assert SparseResidual(BestSource(composed), 3).name == "best source by support loss + sparse residual"


def test_separable_quadratic() -> None:
    """|theta + Delta - t|^2 / 2: the optimum moves the k coordinates with the largest |t - theta| all the way."""
    generator = torch.Generator().manual_seed(0)
    theta, target = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    trainable = torch.arange(12) != 5

    def objective(x: Tensor) -> Tensor:
        return 0.5 * (x - target).square().sum(-1)

    for ridge in (0.0, 0.5):
        residual = fit_residual(objective, theta, torch.zeros_like(theta), trainable, 4, 200, ridge)
        gap = (target - theta) * trainable
        for row, wanted in zip(residual, gap, strict=True):
            expected = torch.zeros(12, dtype=torch.float64)
            top = wanted.abs().argsort(descending=True)[:4]
            expected[top] = wanted[top] / (1 + ridge)
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


def test_flat_and_undefined_objectives_leave_the_start() -> None:
    theta, trainable = torch.ones(2, 6), torch.ones(6, dtype=torch.bool)

    def flat(x: Tensor) -> Tensor:
        return 0 * x.sum(-1) + 1

    def undefined(x: Tensor) -> Tensor:
        return torch.where((x - theta).abs().sum(-1) > 0, torch.nan, 1.0) + x.sum(-1)

    for objective in (flat, undefined):
        residual = fit_residual(objective, theta, torch.zeros_like(theta), trainable, 2, 5)
        assert torch.equal(residual, torch.zeros_like(theta))


def test_running_statistics_stay(make_batch: Callable) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    space = ParameterSpace.from_module(module)
    basis = torch.rand(3, space.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    composed = ComposedLibrary(TaskNetwork(module, space), SourceLibrary(("a", "b", "c"), basis, space))
    theta = SparseResidual(SingleSource(composed), space.dim).parameters(make_batch(composed))
    moved = (theta != basis[0]).any(0)
    assert torch.equal(moved, space.trainable())


def test_gradient_against_finite_differences(composed: ComposedLibrary, make_batch: Callable) -> None:
    batch = make_batch(composed)
    theta = composed.sources[0].expand(len(batch), -1)
    with torch.no_grad():
        losses, gradient = value_and_gradient(lambda x: composed.support_loss(x, batch), theta)
        direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
        ends = [composed.support_loss(theta + h * direction, batch) for h in (1e-6, -1e-6)]
    torch.testing.assert_close((gradient * direction).sum(-1), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)
    assert not losses.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nonzeros": 0}, r"nonzeros is 0; expected a budget in \[1, 25\]"),
        ({"nonzeros": 26}, r"nonzeros is 26; expected a budget in \[1, 25\]"),
        ({"nonzeros": 3, "steps": 0}, "steps is 0"),
        ({"nonzeros": 3, "ridge": -1.0}, "ridge is -1.0"),
        ({"nonzeros": 3, "ridge": math.nan}, "ridge is nan"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, composed: ComposedLibrary) -> None:
    with pytest.raises(ValueError, match=message):
        SparseResidual(SingleSource(composed), **settings)
