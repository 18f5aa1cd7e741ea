"""Folded normalisations: same answers and gradients, and folded only where nothing else sees the convolution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.folding import Pairs
from pyro_smat.networks.parameters import ParameterSpace

X = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    def __init__(
        self, how: Callable[[Block, Tensor], Tensor], norm: nn.Module | None = None, **options: object
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, **options)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(4) if norm is None else norm
        self.other = nn.BatchNorm2d(4)
        self.how = how
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def keep(block: Block, x: Tensor) -> Tensor:
    block.kept = block.conv(x)
    return block.norm(block.kept) + block.kept.mean()


def chain(block: Block, x: Tensor) -> Tensor:
    return block.other(block.norm(block.conv(x)).relu())


def hooked() -> Block:
    block = Block(chain)
    block.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    return block


FOLDED: Pairs = (("conv", "norm"),)
CASES: dict[str, tuple[Callable[[], Block], Pairs]] = {
    "chain": (lambda: Block(chain), FOLDED),
    "no bias, strided, dilated": (lambda: Block(chain, bias=False, stride=2, dilation=2), FOLDED),
    "patches": (lambda: Block(chain, stride=3, padding=0), FOLDED),
    "without scale": (lambda: Block(chain, nn.BatchNorm2d(4, affine=False)), FOLDED),
    "instance norm": (lambda: Block(chain, nn.InstanceNorm2d(4, track_running_stats=True)), FOLDED),
    "kept and used again": (lambda: Block(keep), ()),
    "residual around the norm": (lambda: Block(lambda b, x: (y := b.conv(x)) + b.norm(y)), ()),
    "two norms of one convolution": (lambda: Block(lambda b, x: b.norm(y := b.conv(x)) + b.other(y)), ()),
    "one norm of two calls": (lambda: Block(lambda b, x: b.norm(b.conv(x)) + b.norm(b.conv(2 * x))), ()),
    "an activation between": (lambda: Block(lambda b, x: b.norm(b.conv(x).relu())), ()),
    "circular": (lambda: Block(chain, padding=1, padding_mode="circular"), ()),
    "statistics of the batch": (lambda: Block(chain, nn.BatchNorm2d(4, track_running_stats=False)), ()),
    "hooks": (hooked, ()),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_and_gradients_are_those_of_one_task_at_a_time(name: str) -> None:
    make, expected = CASES[name]
    torch.manual_seed(1)
    module = make().double().eval()
    space = ParameterSpace.from_module(module)
    noise = torch.rand(2, space.dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta = torch.where(space.trainable(), noise - 0.5, noise + 0.2).requires_grad_()  # variances are positive
    network = TaskNetwork(module, space)
    together = network(theta, X)
    alone = torch.stack([network(row, images) for row, images in zip(theta, X, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    probe = torch.linspace(-1, 1, together.numel(), dtype=torch.float64).view(together.shape)
    ours, theirs = (torch.autograd.grad((out * probe).sum(), theta)[0] for out in (together, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(network(theta, X), together, rtol=1e-10, atol=1e-10)
    assert list(network._pairs.values()) == ([expected] if network._folds else [])


def test_a_network_that_takes_another_path_for_other_images_is_looked_at_again() -> None:
    torch.manual_seed(1)
    module = Block(lambda b, x: chain(b, x) if x.shape[-1] == 8 else keep(b, x)).double().eval()
    space = ParameterSpace.from_module(module)
    theta = space.flatten(module.state_dict()).repeat(2, 1)
    network = TaskNetwork(module, space)
    for x in (X, X[..., :7], X):
        expected = torch.stack([network(row, images) for row, images in zip(theta, x, strict=True)])
        torch.testing.assert_close(network(theta, x), expected)
    assert list(network._pairs.values()) == [FOLDED, ()]
