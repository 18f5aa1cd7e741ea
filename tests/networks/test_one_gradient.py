"""The gradient that is put together in place is autograd's own, however the rows of theta are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import compose
from pyro_smat.networks.one_gradient import split_tasks, unflatten
from pyro_smat.networks.parameters import ParameterSpace

SPACE = ParameterSpace.from_module(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))


def loss_of(weights: dict[str, Tensor], number: int) -> Tensor:
    """Every task and every use of a task has its own; some weights are left out."""
    weight, bias = weights["0.weight"], weights["0.bias"]
    return (weight.pow(3).sum() + number * bias.square().sum()) * (1 + number)


def both(theta: Tensor, size: int, uses: int = 1) -> tuple[Tensor, Tensor]:
    ours, theirs = theta.new_zeros(()), theta.new_zeros(())
    for i, (rows, plain) in enumerate(zip(split_tasks(theta, size), theta.split(size), strict=True)):
        for use in range(uses):
            ours = ours + loss_of(unflatten(rows, SPACE), 2 * i + use)
            theirs = theirs + loss_of(SPACE.unflatten(plain), 2 * i + use)
    return ours, theirs


def some_theta(tasks: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(tasks)
    return torch.randn(tasks, SPACE.dim, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize(("tasks", "size"), [(1, 1), (5, 1), (5, 2), (4, 4)])
def test_values_and_gradients(tasks: int, size: int, uses: int, dtype: torch.dtype) -> None:
    theta = some_theta(tasks, dtype)
    ours, theirs = both(theta, size, uses)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, theta), torch.autograd.grad(theirs, theta))


def test_one_graph_gives_its_gradient_time_after_time_and_never_the_same_memory() -> None:
    theta = some_theta(5)
    ours, theirs = both(theta, 2, uses=2)
    (expected,) = torch.autograd.grad(theirs, theta)
    found = [torch.autograd.grad(ours, theta, retain_graph=True)[0] for _ in range(2)]
    for gradient in found:
        torch.testing.assert_close(gradient, expected)
    found[0].zero_()
    torch.testing.assert_close(found[1], expected)


def test_tasks_and_weights_that_nothing_uses_have_zeros() -> None:
    theta = some_theta(3)
    rows = split_tasks(theta, 1)
    loss_of(unflatten(rows[1], SPACE), 1).backward()
    assert not theta.grad[[0, 2]].any()
    assert theta.grad[1, :8].all()
    assert not theta.grad[1, 8:].any()


def test_rows_may_serve_other_ends_too() -> None:
    theta = some_theta(2)
    _, theirs = both(theta, 1)
    rows = split_tasks(theta, 1)
    ours = loss_of(unflatten(rows[0], SPACE), 0) + loss_of(unflatten(rows[1], SPACE), 2) + rows[1].exp().sum()
    torch.testing.assert_close(
        torch.autograd.grad(ours, theta), torch.autograd.grad(theirs + theta[1].exp().sum(), theta)
    )


def test_second_derivatives() -> None:
    assert torch.autograd.gradgradcheck(lambda theta: both(theta, 2, uses=2)[0], some_theta(3))


def test_an_error_in_between_does_not_spoil_the_next_pass() -> None:
    theta = some_theta(3)
    _, theirs = both(theta, 1)
    first, *_ = rows = split_tasks(theta, 1)
    losses = [loss_of(unflatten(own, SPACE), 2 * i) for i, own in enumerate(rows)]
    handle = first.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(sum(losses), theta, retain_graph=True)
    handle.remove()
    torch.testing.assert_close(torch.autograd.grad(sum(losses), theta), torch.autograd.grad(theirs, theta))


def test_batches_of_gradients() -> None:
    """is_grads_batched runs the backward pass under vmap."""
    parts = torch.rand(2, 7, requires_grad=True), torch.rand(1, 7, requires_grad=True)
    coefficients = torch.rand(3, 3, requires_grad=True)
    space = ParameterSpace.from_module(torch.nn.Linear(6, 1))

    def out(theta: Tensor) -> Tensor:
        return torch.stack([named["weight"].sum() * named["bias"].sum() for named in rows_of(theta)])

    def rows_of(theta: Tensor) -> list[dict[str, Tensor]]:
        return [unflatten(rows, space) for rows in split_tasks(theta, 1)]

    inputs = (coefficients, *parts)
    ours = torch.autograd.grad(out(compose(coefficients, parts)), inputs, torch.eye(3), is_grads_batched=True)
    plain = (coefficients @ torch.cat(parts)).split(1)
    expected = torch.stack([row[:, :6].sum() * row[:, 6:].sum() for row in plain])
    for found, one in zip(
        ours, torch.autograd.grad(expected, inputs, torch.eye(3), is_grads_batched=True), strict=True
    ):
        torch.testing.assert_close(found, one)
