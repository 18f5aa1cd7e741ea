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


def test_half_precision_is_rounded_once() -> None:
    """Sources first and experts on top would lose an expert below half a unit of the source's last place."""
    sources, experts = torch.ones(1, 1, dtype=torch.bfloat16), torch.full((2, 1), 2.0**-8 * 1.5, dtype=torch.bfloat16)
    exact = torch.ones(3).double() @ torch.cat([sources, experts]).double()
    assert compose(torch.ones(1, 3), (sources, experts)).item() == exact.to(torch.bfloat16).item()
