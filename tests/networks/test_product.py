"""The product of coefficients and a basis in several matrices, small and large (with huge pages), against one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from pyro_smat.networks import product
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.networks.product import compose


@pytest.fixture(params=[1, 2**60], ids=["large", "small"])
def _size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LARGE", request.param)
    monkeypatch.setattr(product, "COLUMNS", 3)


def inputs(leading: tuple[int, ...], width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (*leading, 5), (2, width), (3, width)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)  # type: ignore[return-value]


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_two_matrices_are_their_rows_one_after_the_other(leading: tuple[int, ...]) -> None:
    coefficients, sources, experts = inputs(leading, 7)
    expected = coefficients @ torch.cat([sources, experts])
    for basis in ((sources, experts), torch.cat([sources, experts])):
        found = compose(coefficients, basis)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        leaves = (coefficients, sources, experts)
        ours, theirs = (torch.autograd.grad(t.square().sum(), leaves, retain_graph=True) for t in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_size")
def test_fixed_sources_get_no_gradient_and_second_derivatives_are_right() -> None:
    coefficients, sources, experts = inputs((3,), 4)
    theta = compose(coefficients, (sources.detach(), experts))
    theta.sum().backward(retain_graph=True)
    assert sources.grad is None
    torch.testing.assert_close(experts.grad, coefficients.detach()[:, 2:].sum(0)[:, None].expand(3, 4))
    assert torch.autograd.gradgradcheck(lambda c, s, e: compose(c, (s, e)), (coefficients, sources, experts))
    batched = vmap(lambda c: compose(c, (sources, experts)))(coefficients)
    torch.testing.assert_close(batched, compose(coefficients, (sources, experts)))


@pytest.mark.usefixtures("_size")
def test_blocks_of_two_matrices() -> None:
    space = ParameterSpace.from_module(nn.Linear(3, 2), {"weights": "weight", "rest": ".*"})
    coefficients, sources, experts = inputs((4, 2), space.dim)
    found = compose(coefficients, (sources, experts), space)
    torch.testing.assert_close(found, compose(coefficients, torch.cat([sources, experts]), space))
    with pytest.raises(ValueError, match="5 columns and the basis 2 rows"):
        compose(coefficients, (sources,), space)
    for other in (experts[:, 1:], experts.float()):
        with pytest.raises(ValueError, match=r"torch.float64 and \(3, .*expected rows of one length and one dtype"):
            compose(coefficients, (sources, other), space)


def test_half_precision_is_rounded_once() -> None:
    """Sources first and experts on top would lose an expert below half a unit of the source's last place."""
    sources, experts = torch.ones(1, 1, dtype=torch.bfloat16), torch.full((2, 1), 2.0**-8 * 1.5, dtype=torch.bfloat16)
    exact = torch.ones(3).double() @ torch.cat([sources, experts]).double()
    assert compose(torch.ones(1, 3), (sources, experts)).item() == exact.to(torch.bfloat16).item()


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_in_16_bits_theta_is_rounded_once(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    coefficients, *parts = inputs(leading, 7)
    coefficients, parts = coefficients.detach().float(), [part.detach().to(dtype) for part in parts]
    exact = coefficients.double() @ torch.cat(parts).double()
    for basis in (parts, torch.cat(parts)):
        found = compose(coefficients, basis)
        assert found.dtype == dtype
        unit = torch.finfo(dtype).eps * exact.abs()
        assert ((found.double() - exact).abs() <= 0.501 * unit + 1e-6).all()  # half a unit of the last place


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("dtype", HALVES)
def test_in_16_bits_the_gradient_of_coefficients_is_summed_in_float32(dtype: torch.dtype) -> None:
    """Two sources that differ by little: what tells them apart is below a unit of 16 bits; nothing overflows."""
    width, size = 64, 2.0**11
    sources = torch.ones(2, width, dtype=dtype)
    sources[1, 0] = 1.5
    coefficients = torch.tensor([[0.25, 0.75, 0.5]], requires_grad=True)
    experts = torch.full((1, width), 2.0, dtype=dtype, requires_grad=True)
    theta = compose(coefficients, (sources, experts))
    of_coefficients, of_experts = torch.autograd.grad(theta, (coefficients, experts), torch.full_like(theta, size))
    total = size * width  # 131,072: float16 ends at 65,504
    assert of_coefficients.dtype == torch.float32
    assert of_coefficients.tolist() == [[total, total + size / 2, 2 * total]]
    assert (of_experts == size / 2).all()


@pytest.mark.usefixtures("_size")
def test_in_16_bits_gradients_can_be_differentiated_and_batched() -> None:
    coefficients, sources, experts = (part.detach().float() for part in inputs((3,), 4))
    coefficients.requires_grad_()
    halves = sources.bfloat16().requires_grad_(), experts.bfloat16().requires_grad_()
    theta = compose(coefficients, halves)
    (first,) = torch.autograd.grad(theta.square().sum(), coefficients, create_graph=True)
    second = torch.autograd.grad(first.sum(), (coefficients, *halves), retain_graph=True)
    matrix = torch.cat(halves).double()
    of_one = 2 * (matrix @ matrix.mT).sum(0)  # sum over c of 2 c B B'
    torch.testing.assert_close(second[0].double(), of_one.expand(3, 5), rtol=0.02, atol=0.02)
    assert all(own.isfinite().all() and own.any() for own in second[1:])
    each = torch.eye(12).view(12, 3, 4).bfloat16()
    (batched,) = torch.autograd.grad(theta, coefficients, each, is_grads_batched=True, retain_graph=True)
    (single,) = torch.autograd.grad(theta, coefficients, each[5])
    torch.testing.assert_close(batched[5], single)
    together = vmap(lambda c: compose(c, halves))(coefficients)
    torch.testing.assert_close(together, theta, rtol=0.02, atol=0.02)
