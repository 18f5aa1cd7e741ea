"""compose_active: the same theta as compose, without reading what is closed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_smat.cost import compose_active, open_entries_of
from pyro_smat.networks.composition import compose
from pyro_smat.networks.parameters import ParameterSpace

SPACE = ParameterSpace.from_module(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), {"a": "0", "b": "1"})
FLAT = ParameterSpace.from_module(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))


def sparse_weights(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.5)
    weights[..., 0] = 0.1
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_compose(dtype: torch.dtype) -> None:
    basis = torch.randn(6, SPACE.dim, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        flat, blockwise = sparse_weights(6, seed=seed), sparse_weights(2, 6, seed=seed)
        for found, expected in (
            (compose_active(flat, basis), compose(flat, basis)),
            (compose_active(flat, basis, FLAT), compose(flat, basis, FLAT)),
            (compose_active(blockwise, basis, SPACE), compose(blockwise, basis, SPACE)),
        ):
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected)


def test_a_source_comes_back_bit_for_bit() -> None:
    basis = torch.randn(4, SPACE.dim)
    for row in range(4):
        assert torch.equal(compose_active(torch.eye(4)[row], basis), basis[row])
    theta = compose_active(torch.eye(4)[[2, 3]], basis, SPACE)
    assert torch.equal(theta, torch.cat([basis[2, :25], basis[3, 25:]]))


def test_closed_rows_are_not_read() -> None:
    """A NaN in a row spoils every dense product with it, and nothing here."""
    basis = torch.randn(3, SPACE.dim)
    basis[1] = torch.nan
    weights = torch.tensor([0.25, 0.0, 0.75])
    assert compose(weights, basis).isnan().all()
    assert torch.isfinite(compose_active(weights, basis)).all()


def test_blocks_that_an_expert_does_not_touch_are_not_read() -> None:
    basis = torch.randn(4, SPACE.dim)
    basis[2, 25:], basis[3, :25] = 0.0, 0.0  # experts of the first and the second block
    opened = open_entries_of(basis[2:], SPACE)
    weights = torch.tensor([[0.5, 0.5, 0.3, 0.7], [1.0, 0.0, 0.6, 0.4]])
    expected = compose(weights, basis, SPACE)
    basis[2, 25:], basis[3, :25] = torch.nan, torch.nan
    torch.testing.assert_close(compose_active(weights, basis, SPACE, opened), expected)


def test_it_leaves_the_basis_and_takes_no_gradient() -> None:
    basis = torch.randn(3, SPACE.dim, requires_grad=True)
    before = basis.detach().clone()
    theta = compose_active(torch.tensor([0.5, 0.25, 0.25], requires_grad=True), basis)
    assert not theta.requires_grad
    theta.zero_()
    assert torch.equal(basis, before)


def test_bad_shapes_are_refused() -> None:
    basis = torch.randn(3, SPACE.dim)
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(3,\) of one task"):
        compose_active(torch.ones(2), basis)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \(2, 3\) of one task"):
        compose_active(torch.ones(3), basis, SPACE)
    with pytest.raises(ValueError, match=r"shape \(5, 3\); expected \(3,\) of one task"):
        compose_active(torch.ones(5, 3), basis)
    with pytest.raises(ValueError, match=r"open entries have shape \(1, 2\); expected \(M, 1\)"):
        compose_active(torch.ones(3), basis, None, torch.ones(1, 2))
    with pytest.raises(ValueError, match="no coefficient of block 1 is open"):
        compose_active(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), basis, SPACE)
