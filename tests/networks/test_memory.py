"""Chunks: sizes by what the first images took, smaller ones after running out of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.memory import measured_bytes
from pyro_smat.networks.parameters import ParameterSpace


class Scarce(torch.autograd.Function):
    """x, where there is room for so many tasks and images."""

    tasks, images = 2, 3

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if len(x) > Scarce.images:
            raise torch.OutOfMemoryError("CUDA out of memory (a small one)")
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        if info.batch_size > Scarce.tasks or x.movedim(in_dims[0], 0).shape[1] > Scarce.images:
            raise torch.OutOfMemoryError("CUDA out of memory (a small one)")
        return x.clone(), in_dims[0]


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Scarce.apply(self.linear(x))


@pytest.mark.parametrize(("tasks", "images"), [(1, 3), (5, 3), (8, 2), (1, 8), (3, 7)])
def test_chunks_are_halved_until_they_fit(tasks: int, images: int) -> None:
    module = Narrow()
    space = ParameterSpace.from_module(module)
    network = TaskNetwork(module, space)
    network._bytes_per_image[torch.Size([4]), torch.float32] = 1  # an estimate that is far too low
    theta = torch.randn(tasks, space.dim, requires_grad=True)
    x = torch.randn(tasks, images, 4)
    weight, bias = theta[:, :16].view(-1, 4, 4), theta[:, 16:]
    expected = torch.einsum("toi,tni->tno", weight, x) + bias.unsqueeze(1)
    output = network(theta, x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(network.shared(theta, x[0]), torch.einsum("toi,ni->tno", weight, x[0]) + bias[:, None])
    probe = torch.randn_like(expected)
    (found,) = torch.autograd.grad((output * probe).sum(), theta)
    torch.testing.assert_close(found, torch.autograd.grad((expected * probe).sum(), theta)[0])
    assert network.one_at_a_time is None


def test_running_out_of_memory_with_one_image_is_said() -> None:
    class Greedy(Narrow):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + torch.empty(2**60)

    module = Greedy()
    space = ParameterSpace.from_module(module)
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory"):
        TaskNetwork(module, space)(torch.zeros(1, space.dim), torch.zeros(1, 1, 4))


def test_images_are_never_parted_where_the_network_normalises_by_the_batch() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    space = ParameterSpace.from_module(module)
    theta = space.flatten(module.state_dict()).expand(2, -1)
    x = torch.randn(9, 4)
    found = TaskNetwork(module, space, memory_limit=1).shared(theta, x)
    torch.testing.assert_close(found, module(x).detach().expand(2, 9, 4))


def test_measured_bytes_count_layers_and_functions() -> None:
    layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).eval()
    x = torch.randn(20, 4)
    assert measured_bytes(layers, layers, x) == 2 * 4 * (6 + 6)  # twice the outputs, float32
    assert measured_bytes(layers, layers, x.new_zeros(3, 4)) == 2 * 4 * (6 + 6)
    functions = nn.Module()
    assert (
        measured_bytes(functions, lambda images: F.relu(images @ torch.ones(4, 50)).view(-1), x)
        == 4 * (50 + 50) + 4 * 4 * 50 // 16
    )


def test_no_image_is_invented() -> None:
    """The user's forward sees real images of the call, at most 16 of them beforehand, and on their own device."""
    seen: list[tuple[torch.Size, str]] = []

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.shape, x.device.type))
            return self.linear(x)

    module = Looking()
    space = ParameterSpace.from_module(module)
    network, theta = TaskNetwork(module, space), torch.zeros(2, space.dim)
    assert seen == []
    network(theta[0], torch.zeros(40, 4))
    network(theta, torch.zeros(2, 40, 4))
    network(theta, torch.zeros(2, 40, 4))
    assert seen == [((40, 4), "cpu"), ((16, 4), "cpu"), ((40, 4), "cpu"), ((40, 4), "cpu")]
