"""A basis in parts is to everything that takes one what the matrix of its rows is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_smat.cost.active import compose_active
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.product import compose


def parts(*leading: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*leading, 2, 7, generator=generator), torch.randn(*leading, 3, 7, generator=generator)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_it_says_of_itself_what_the_matrix_would(leading: tuple[int, ...]) -> None:
    sources, experts = (part.to(torch.bfloat16) for part in parts(*leading))
    basis, matrix = Basis(sources, experts), torch.cat([sources, experts], -2)
    assert torch.equal(basis.matrix(), matrix)
    for name in ("shape", "ndim", "dtype", "device"):
        assert getattr(basis, name) == getattr(matrix, name)
    assert (len(basis), basis.element_size()) == (len(matrix), 2)
    assert torch.equal(basis.unsqueeze(0).matrix(), matrix.unsqueeze(0))
    assert Basis(sources).matrix() is sources
    assert Basis(sources).shape == sources.shape


def test_samples_are_bases_and_rows_are_not() -> None:
    basis = Basis(*parts(4))
    for i, one in enumerate(basis):
        assert torch.equal(one.matrix(), basis.matrix()[i])
        assert torch.equal(basis[i].matrix(), basis.matrix()[i])
    alone = Basis(*parts())
    for of_rows in (lambda: alone[0], lambda: iter(alone)):
        with pytest.raises(TypeError, match=r"\(5, 7\) lie in several matrices; expected \.sources"):
            of_rows()


def test_gradients_reach_the_parts_and_stop_where_detached() -> None:
    sources, experts = (part.requires_grad_() for part in parts())
    coefficients = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    basis = Basis(sources, experts)
    theta = compose(coefficients, basis)
    torch.testing.assert_close(theta, coefficients @ basis.matrix())
    leaves = (coefficients, sources, experts)
    ours = torch.autograd.grad(theta.square().sum(), leaves)
    theirs = torch.autograd.grad((coefficients @ basis.matrix()).square().sum(), leaves)
    torch.testing.assert_close(ours, theirs)
    compose(coefficients, basis.detach()).sum().backward()
    assert sources.grad is None
    assert experts.grad is None


def test_one_task_reads_what_it_opens() -> None:
    basis = Basis(*parts())
    coefficients = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0])
    torch.testing.assert_close(compose_active(coefficients, basis), coefficients @ basis.matrix())
