"""Max pooling as maxima of slices has the bits of PyTorch's kernel, and stays out of the way of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks import max_pooling
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.max_pooling import max_pooled
from pyro_smat.networks.parameters import ParameterSpace

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},  # of a ResNet
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 2, "stride": 3, "dilation": 4},
    {"kernel_size": 5, "stride": 2, "padding": 2, "ceil_mode": True},
]


def never(*arguments: Any, **options: Any) -> Tensor:
    raise AssertionError("the kernel itself was called")


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(4, 32, 16, 15), (8, 33, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_kernel(geometry: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With a last column left out, flat pieces, infinities and a NaN."""
    x = images(*shape, dtype=dtype).clamp(min=0)
    x[..., 3:9, 2:7] = -torch.inf
    x[0, ..., 1, 1] = torch.nan
    expected = F.max_pool2d(x, **geometry)
    function = F.max_pool2d if geometry.get("ceil_mode") else never
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(max_pooled(function, x, **geometry), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "x",
    [
        images(1, 1, 4, 4),
        images(4, 32, 16, 16).contiguous(memory_format=torch.channels_last),
        images(4, 32, 16, 16).requires_grad_(),
        images(4, 32, 16, 16).to("meta"),
    ],
    ids=["small", "channels last", "gradient", "another device"],
)
def test_the_kernel_itself_where_it_is_faster_or_needed(x: Tensor) -> None:
    called: list[tuple[Any, ...]] = []

    def kernel(*arguments: Any, **options: Any) -> Tensor:
        called.append(arguments)
        return F.max_pool2d(*arguments, **options)

    found = max_pooled(kernel, x, 2)
    assert len(called) == 1
    assert x.is_meta or torch.equal(found, F.max_pool2d(x, 2))


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"kernel_size": 20}, "too small"),
        ({"kernel_size": 2, "padding": 2}, "half of"),
        ({"kernel_size": 2, "stride": 0}, "stride should not be zero"),
        ({"kernel_size": 0, "stride": 1}, "greater than zero"),
        ({"kernel_size": 2, "dilation": 0}, "greater than zero"),
    ],
)
def test_what_the_kernel_refuses_is_refused_in_its_words(geometry: dict[str, Any], message: str) -> None:
    x = images(4, 32, 16, 16)
    with pytest.raises(RuntimeError) as expected:
        F.max_pool2d(x, **geometry)
    with pytest.raises(RuntimeError, match=message) as found:
        max_pooled(F.max_pool2d, x, **geometry)
    assert str(found.value) == str(expected.value)


def test_task_networks_pool_so_without_a_gradient_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task and several, layers and functions: the outputs of plain modules, and their gradient at ties."""
    pooled = []
    gains = max_pooling._gains

    def noted(x: Tensor) -> bool:
        pooled.extend([x] if torch.is_grad_enabled() and gains(x) else [])  # measuring of activations has no gradient
        return gains(x)

    monkeypatch.setattr(max_pooling, "_gains", noted)

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.max_pool2d(F.max_pool2d(x, 2, stride=1), 2)

    module = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.MaxPool2d(2), Functional(), nn.Flatten())
    space = ParameterSpace.from_module(module)
    network, theta = TaskNetwork(module, space), space.flatten(dict(module.named_parameters())).detach()
    x = images(8, 1, 32, 32).round()  # many equal neighbours
    for tasks in (1, 3):
        many, weights = x.expand(tasks, *x.shape), theta.expand(tasks, -1)
        found = network(weights, many)
        assert len(pooled) == 3
        torch.testing.assert_close(found, module(x).detach().expand(tasks, -1, -1))
        pooled.clear()
        leaf = weights.clone().requires_grad_()
        network(leaf, many).square().sum().backward()
        assert not pooled
        module.zero_grad()
        module(x).square().sum().backward()
        own = space.flatten({name: p.grad for name, p in module.named_parameters()})
        torch.testing.assert_close(leaf.grad, own.expand(tasks, -1))
