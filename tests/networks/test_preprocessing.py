"""Preprocessing against torchvision's transforms, and its place in a TaskNetwork."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pyro_smat.networks import ParameterSpace, TaskNetwork
from pyro_smat.networks.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    detach_preprocessing,
    imagenet,
    preprocessing_of,
)


@pytest.mark.parametrize(
    ("interpolation", "size"), [("bilinear", 16), ("bicubic", 16), ("bicubic", 48), ("nearest", 16)]
)
def test_resizing_and_normalising_are_torchvisions(interpolation: str, size: int) -> None:
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    resize = v2.Resize((size, size), v2.InterpolationMode(interpolation), antialias=interpolation != "nearest")
    expected = v2.Compose([resize, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(images)
    ours = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (size, size), interpolation=interpolation)(images)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_value_ranges() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert Preprocessing(value_range=(-1.0, 1.0))(images).flatten().tolist() == [-1.0, 0.0, 1.0]
    assert Preprocessing(value_range=(0.0, 255.0))(images).flatten().tolist() == [0.0, 127.5, 255.0]
    assert Preprocessing(mean=(0.5,))(images).flatten().tolist() == [-0.5, 0.0, 0.5]
    assert torch.equal(Preprocessing()(images), images)
    assert Preprocessing(size=(2, 2))(images.bfloat16()).dtype == torch.bfloat16


def test_names_of_parameters_stay_and_copies_keep_it() -> None:
    network = imagenet(nn.Sequential(nn.Conv2d(3, 2, 1)), (4, 4)).eval()
    assert set(network.state_dict()) == {"0.weight", "0.bias"}
    images = torch.rand(2, 3, 8, 8)
    expected = network[0](Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (4, 4))(images))
    assert torch.equal(network(images), expected)
    assert torch.equal(copy.deepcopy(network)(images), expected)


def test_a_task_network_prepares_shared_images_once() -> None:
    network = imagenet(nn.Sequential(nn.Conv2d(3, 2, 1)), (4, 4)).eval()
    space = ParameterSpace.from_module(network)
    theta = space.flatten(network.state_dict()) * torch.tensor([[1.0], [2.0], [3.0]])
    images, tasks = torch.rand(5, 3, 8, 8), TaskNetwork(network, space)
    seen: list[torch.Size] = []
    prepare = tasks._prepared
    tasks._prepared = lambda x: (seen.append(x.shape), prepare(x))[1]  # type: ignore[func-returns-value, method-assign]

    def expected(scale: float, x: Tensor) -> Tensor:
        return scale * network(x).detach()

    found = tasks.shared(theta, images)
    assert seen == [(5, 3, 8, 8), (5, 3, 8, 8)]  # once to measure, once for all three
    for row, scale in zip(found, (1.0, 2.0, 3.0), strict=True):
        torch.testing.assert_close(row, expected(scale, images))
    many = torch.rand(3, 5, 3, 8, 8)
    for row, scale, x in zip(tasks(theta, many), (1.0, 2.0, 3.0), many, strict=True):
        torch.testing.assert_close(row, expected(scale, x))


def test_what_comes_before_any_other_hook_is_told_and_taken_off() -> None:
    first, second, later = Preprocessing(mean=(0.1,)), Preprocessing(std=(0.2,)), Preprocessing(mean=(0.3,))
    network = second.attach(first.attach(nn.Linear(2, 2)))
    network.register_forward_pre_hook(lambda module, inputs: None)
    later.attach(network)
    assert preprocessing_of(network) == [first, second]
    assert preprocessing_of(nn.Linear(2, 2)) == []
    assert detach_preprocessing(network) == [first, second]
    assert preprocessing_of(network) == []
    assert len(network._forward_pre_hooks) == 2
