"""A network that writes to its images: its answers are those of the network alone, and the caller's images stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.own_images import OwnImages
from pyro_smat.networks.parameters import ParameterSpace


def whole(x: Tensor) -> Tensor:
    x -= 0.5
    x /= 0.25
    return x


def by_channel(x: Tensor) -> Tensor:
    for channel in range(x.shape[1]):
        x[:, channel].sub_(0.1 * (channel + 1))
    return x


class Network(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.layer = how, nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.how(x).flatten(1)).relu_()


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("recompute", [None, True])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("how", [whole, by_channel])
def test_networks_keep_to_their_own_images(how: Callable, tasks: int, recompute: bool | None, inference: bool) -> None:
    module = Network(how)
    space = ParameterSpace.from_module(module)
    network = TaskNetwork(module, space, recompute=recompute)
    theta = torch.randn(tasks, space.dim, requires_grad=not inference, generator=torch.Generator().manual_seed(0))
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    expected = []
    for row in theta.detach():
        module.load_state_dict(space.unflatten(row))
        expected.append(module(images.clone()).detach())
    each = torch.stack([images] * tasks)
    with torch.inference_mode(inference):
        for asked in (images.expand(tasks, *images.shape), each, each):  # shared by the tasks, and of their own
            kept = asked.clone()
            found = network(theta, asked)
            torch.testing.assert_close(found.detach(), torch.stack(expected))
            assert torch.equal(asked, kept)
            if not inference:
                (gradient,) = torch.autograd.grad(found.sum(), theta)
                assert gradient.any()
        torch.testing.assert_close(network.shared(theta, images).detach(), torch.stack(expected))
    assert network.one_at_a_time is None


def test_threads_that_share_images_at_the_first_run() -> None:
    images, own, barrier, found = torch.ones(2), OwnImages(), threading.Barrier(4), []

    def network(x: Tensor) -> Tensor:
        for _ in range(50):
            x += 1
            time.sleep(0)
        return x

    def ask() -> None:
        barrier.wait()
        found.append(own.run(network, images).clone())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [x.tolist() for x in found] == [[51.0, 51.0]] * 4
    assert images.tolist() == [1.0, 1.0]


def test_a_network_that_leaves_them_alone_is_given_no_copies() -> None:
    own, seen = OwnImages(), []
    images = torch.ones(2)
    for _ in range(2):
        own.run(lambda x: seen.append(x) or x * 2, images)  # type: ignore[func-returns-value]
    assert all(x is images for x in seen)


def test_errors_of_the_network_come_through_and_the_images_stay() -> None:
    def breaks(x: Tensor) -> Tensor:
        x.zero_()
        raise LookupError("of its own")

    images = torch.ones(2)
    for _ in range(2):
        with pytest.raises(LookupError, match="of its own"):
            OwnImages().run(breaks, images)
        assert images.all()
