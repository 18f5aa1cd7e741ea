"""risk.py against linear programming, the Rockafellar-Uryasev minimum, finite differences and CVaR's axioms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from pyro_smat.metrics.risk import check_rho, cvar, cvar_weights, value_at_risk

RHOS = (0.03, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.999, 1.0)


def _losses(n: int, seed: int = 0, levels: int | None = None) -> Tensor:
    """``(n,)`` float64; with ``levels`` only that many distinct values, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64)
    return x if levels is None else (x * levels).floor() / levels


def _linear_program(losses: Tensor, rho: float) -> float:
    n = len(losses)
    solution = linprog(-losses.numpy(), A_eq=np.ones((1, n)), b_eq=[1.0], bounds=(0, 1 / (rho * n)))
    assert solution.success
    return -float(solution.fun)


def _rockafellar_uryasev(losses: Tensor, rho: float) -> float:
    """Minimum over t; the objective is piecewise linear, so the losses themselves are enough candidates."""
    excess = (losses.unsqueeze(0) - losses.unsqueeze(1)).clamp(min=0).mean(1)
    return float((losses + excess / rho).min())


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("n", [1, 2, 7, 16, 30])
@pytest.mark.parametrize("levels", [None, 3])
def test_cvar_is_the_linear_program_and_the_minimum_over_t(rho: float, n: int, levels: int | None) -> None:
    x = _losses(n, seed=n, levels=levels)
    value = float(cvar(x, rho))
    assert value == pytest.approx(_rockafellar_uryasev(x, rho), abs=1e-12)
    if rho * n >= 1:  # below that the program's caps exceed 1, still feasible, still the maximum
        assert value == pytest.approx(_linear_program(x, rho), abs=1e-9)
    else:
        assert value == pytest.approx(float(x.max()), abs=1e-15)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("levels", [None, 4])
def test_weights_are_feasible_and_share_ties(rho: float, levels: int | None) -> None:
    x = _losses(23, seed=5, levels=levels)
    w = cvar_weights(x, rho)
    assert float(w.sum()) == pytest.approx(1, abs=1e-12)
    assert (w >= 0).all()
    assert (w <= 1 / (rho * 23) + 1e-12).all()
    assert float(w @ x) == pytest.approx(_rockafellar_uryasev(x, rho), abs=1e-12)
    for level in x.unique():
        assert w[x == level].unique().numel() == 1


def test_ties_at_the_threshold_by_hand() -> None:
    x = torch.tensor([5.0, 2.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    w = cvar_weights(x, 0.5)  # 2.5 items: all of the 5, half of each 2
    torch.testing.assert_close(w, torch.tensor([0.4, 0.2, 0.2, 0.2, 0.0], dtype=torch.float64))
    assert float(cvar(x, 0.5)) == pytest.approx((5 + 1.5 * 2) / 2.5)
    torch.testing.assert_close(cvar_weights(torch.ones(8), 0.3), torch.full((8,), 1 / 8))


@pytest.mark.parametrize("rho", RHOS)
def test_gradient_agrees_with_finite_differences(rho: float) -> None:
    x = _losses(16, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(cvar(x, rho), x)
    step = 1e-6
    numeric = []
    for i in range(16):
        bump = torch.zeros(16, dtype=torch.float64)
        bump[i] = step
        up, down = _rockafellar_uryasev(x.detach() + bump, rho), _rockafellar_uryasev(x.detach() - bump, rho)
        numeric.append((up - down) / (2 * step))
    np.testing.assert_allclose(gradient.numpy(), numeric, atol=1e-8)
    torch.testing.assert_close(gradient, cvar_weights(x, rho))
    assert not cvar_weights(x, rho).requires_grad


def test_a_tail_smaller_than_one_item_still_trains() -> None:
    x = _losses(16).requires_grad_()
    (gradient,) = torch.autograd.grad(cvar(x, 0.05), x)
    assert float(gradient.sum()) == pytest.approx(1)
    assert int(gradient.argmax()) == int(x.argmax())
    assert float(cvar(x.detach(), 1e-300)) == float(x.detach().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rho_one_is_the_mean_exactly(dtype: torch.dtype) -> None:
    x = _losses(57, seed=1, levels=9).to(dtype)
    assert torch.equal(cvar(x, 1.0), x.sum() / 57)
    assert torch.equal(cvar_weights(x, 1.0), torch.full((57,), 1 / 57, dtype=dtype))


def test_products_that_are_an_integer_on_paper_count_as_one() -> None:
    x = torch.arange(100, dtype=torch.float64)
    for rho, count in ((0.07, 7), (0.29, 29)):
        assert rho * 100 != count  # 7.000000000000001 and 28.999999999999996
        assert float(value_at_risk(x, rho)) == 100 - count
        assert float(cvar(x, rho)) == pytest.approx(float(x[-count:].mean()), abs=1e-12)
        assert int((cvar_weights(x, rho) > 0).sum()) == count


@pytest.mark.parametrize("rho", RHOS)
def test_value_at_risk_is_an_order_statistic_that_minimises(rho: float) -> None:
    x = _losses(21, seed=9)
    t = value_at_risk(x, rho)
    assert float(t) == float(x.sort(descending=True).values[math.ceil(rho * 21) - 1])
    objective = float(t + (x - t).clamp(min=0).mean() / rho)
    assert objective == pytest.approx(_rockafellar_uryasev(x, rho), abs=1e-12)


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_batch_dims_equal_a_loop(dim: int) -> None:
    x = _losses(3 * 5 * 7, seed=2, levels=6).reshape(3, 5, 7)
    for function in (cvar, value_at_risk):
        rows = [function(row, 0.3) for row in x.movedim(dim, -1).reshape(-1, x.shape[dim])]
        torch.testing.assert_close(function(x, 0.3, dim).flatten(), torch.stack(rows))
    weights = cvar_weights(x, 0.3, dim)
    assert weights.shape == x.shape
    torch.testing.assert_close((weights * x).sum(dim), cvar(x, 0.3, dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_counts_do_not_overflow_it(dtype: torch.dtype) -> None:
    x = torch.zeros(6000, dtype=dtype)
    x[:1197] = 1  # bfloat16 rounds 1197 to 1200, which would leave the 4803 ties at 0 without their share of 3 / 4803
    assert cvar(x, 0.2).dtype == cvar_weights(x, 0.2).dtype == value_at_risk(x, 0.2).dtype == dtype
    assert float(cvar(x, 0.2)) == pytest.approx(1197 / 1200, rel=5e-3)
    assert float(cvar_weights(x, 0.2)[-1]) == pytest.approx(3 / 4803 / 1200, rel=0.1)


def test_nan_is_not_hidden() -> None:
    x = torch.tensor([1.0, float("nan"), 3.0, 2.0])
    for rho in (0.1, 0.5, 1.0):
        assert cvar(x, rho).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_cpu_and_is_deterministic() -> None:
    x = _losses(1000, levels=50).reshape(10, 100)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(cvar(x.cuda(), 0.13).cpu(), cvar(x, 0.13))
        torch.testing.assert_close(cvar_weights(x.cuda(), 0.13).cpu(), cvar_weights(x, 0.13))
    finally:
        torch.use_deterministic_algorithms(False)


_values = st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=1, max_size=12)
_rho = st.floats(1e-3, 1)


@settings(max_examples=60, deadline=None)
@given(values=_values, rho=_rho, other=_rho, shift=st.integers(-9, 9), scale=st.integers(0, 9), data=st.data())
def test_axioms(values: list[float], rho: float, other: float, shift: int, scale: int, data: st.DataObject) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.tensor(data.draw(st.lists(_values.map(lambda v: v[0]), min_size=len(x), max_size=len(x))), dtype=x.dtype)
    value = float(cvar(x, rho))
    assert float(cvar(x + shift, rho)) == pytest.approx(value + shift, abs=1e-9)
    assert float(cvar(x * scale, rho)) == pytest.approx(value * scale, abs=1e-9)
    assert float(cvar(x + y, rho)) <= value + float(cvar(y, rho)) + 1e-9
    assert float(cvar(torch.maximum(x, y), rho)) >= value - 1e-9
    low, high = min(rho, other), max(rho, other)
    assert float(cvar(x, low)) >= float(cvar(x, high)) - 1e-9
    assert float(x.mean()) - 1e-9 <= value <= float(x.max()) + 1e-9


@pytest.mark.parametrize("rho", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_rho_outside_its_range_is_refused(rho: float) -> None:
    for call in (lambda: check_rho(rho), lambda: cvar(torch.ones(3), rho), lambda: value_at_risk(torch.ones(3), rho)):
        with pytest.raises(ValueError, match=r"rho is .*\(0, 1\].*alpha is 1 - rho"):
            call()


def test_losses_that_have_no_tail_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 0\).*at least one loss"):
        cvar(torch.ones(4, 0), 0.5)
    with pytest.raises(ValueError, match="at least one loss"):
        cvar_weights(torch.tensor(1.0), 0.5)
    with pytest.raises(ValueError, match=r"int64; expected floating point"):
        cvar(torch.tensor([1, 2]), 0.5)
