"""Weights of convolutions whose outer taps see only padding have the gradient that float32 says, in 16 bits too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pyro_smat.networks.reached_taps import _unreached, convolved

GEOMETRIES = [
    *(((size, size), (3, 3), stride, 1, 1) for size in (1, 2, 3) for stride in (1, 2)),
    ((2, 1), (3, 3), 2, 1, 1),
    ((4, 1), (7, 7), 2, 3, 1),
    ((1, 2), (5, 5), 1, 2, 1),
    ((2, 2), (4, 4), (2, 1), (2, 1), (1, 1)),
    ((3, 3), (3, 3), 1, 4, 4),
    ((3, 3), (3, 3), 1, "same", 2),
    ((5, 5), (3, 3), 1, "valid", 2),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_taps_without_a_gradient_are_those_that_are_filled(size, kernel, stride, padding, dilation) -> None:  # type: ignore[no-untyped-def]
    """Of an image of ones every tap that an output needs has a gradient; PyTorch in float64 says which."""
    x, weight = torch.ones(1, 1, *size).double(), torch.ones(1, 1, *kernel).double().requires_grad_()
    y = F.conv2d(x, weight, None, stride, padding, dilation)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    each = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
    found = _unreached(size, kernel, each(stride), each(padding), each(dilation))
    assert torch.equal(torch.zeros(kernel, dtype=torch.bool) if found is None else found, gradient[0, 0] == 0)
    exact = weight.detach().float()
    for dtype in (torch.float32, torch.bfloat16):
        own = convolved(F.conv2d, x.to(dtype), exact.to(dtype), None, stride, padding, dilation)
        torch.testing.assert_close(own.double(), y.detach())


PROGRAM = """
import torch
from torch import nn
from pyro_smat import ParameterSpace, TaskNetwork

torch.set_num_threads(1)
module = nn.Sequential(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU()).eval()
space = ParameterSpace.from_module(module)
generator = torch.Generator().manual_seed(0)
for tasks, limit in ((1, None), (3, 2**40), (3, 1)):
    theta = torch.randn(tasks, space.dim, generator=generator) / 8
    x = torch.randn(tasks, 28, 64, 1, 1, generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = theta.to(dtype, copy=True).requires_grad_()
        TaskNetwork(module, space, memory_limit=limit)(leaf, x).float().square().sum().backward()
        gradients.append(leaf.grad.float())
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.05 * exact.norm(), (tasks, limit, rounded.abs().max())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fills memory as the C library of Linux does")
def test_gradients_do_not_depend_on_what_was_in_memory() -> None:
    """Fresh memory is filled with 0xFE, which is a huge number in bfloat16."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "MALLOC_PERTURB_": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
