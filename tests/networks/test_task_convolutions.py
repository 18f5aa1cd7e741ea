"""Convolutions of T tasks at once against PyTorch's own, one task after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks import task_convolutions
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.networks.task_convolutions import Geometry, channels_last, convolve_tasks

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WAYS = {
    "by the rule": convolve_tasks,
    "channels last": lambda g, x, w, b: task_convolutions._grouped(g, channels_last(x), w, b),
    "one by one": task_convolutions._one_by_one,
    "pointwise": task_convolutions._pointwise,
    "small maps": lambda g, x, w, b: task_convolutions._small_maps(plain(g), x, w, b),
}


def plain(geometry: Geometry) -> Geometry:
    padding = (0, 0) if geometry.padding == "valid" else geometry.padding
    return Geometry(geometry.stride, padding, geometry.dilation, geometry.groups)


def reference(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.stack(
        [
            F.conv2d(
                images,
                weight[t],
                None if bias is None else bias[t],
                geometry.stride,
                geometry.padding,
                geometry.dilation,
                geometry.groups,
            )
            for t, images in enumerate(x)
        ]
    )


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    probe = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    return torch.autograd.grad((output * probe).sum(), inputs)


@pytest.fixture(autouse=True, scope="module")
def _whole_float32() -> Iterator[None]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, object]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return {
        "tasks": draw(st.integers(1, 3)),
        "images": draw(st.integers(1, 3)),
        "channels": groups * draw(st.integers(1, 9)),
        "out": groups * draw(st.integers(1, 3)),
        "size": draw(st.tuples(st.integers(5, 8), st.integers(5, 8))),
        "kernel": kernel,
        "geometry": Geometry(
            draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            draw(st.one_of(st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2)))),
            draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
            groups,
        ),
        "bias": draw(st.booleans()),
        "tasks_last": draw(st.booleans()),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(case=convolutions(), seed=st.integers(0, 99))
def test_every_way_is_pytorchs_convolution_with_its_gradients(device: str, way: str, case: dict, seed: int) -> None:
    geometry, kernel = case["geometry"], case["kernel"]
    if way == "pointwise":
        geometry, kernel = Geometry(geometry.stride, (0, 0), geometry.dilation, 1), (1, 1)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    x = draw(case["tasks"], case["images"], case["channels"], *case["size"])
    if case["tasks_last"]:  # as a layer before it may have left them
        x = channels_last(x).unflatten(1, (case["tasks"], -1)).transpose(0, 1)
    x.requires_grad_()
    weight = draw(case["tasks"], case["out"], case["channels"] // geometry.groups, *kernel).requires_grad_()
    bias = draw(case["tasks"], case["out"]).requires_grad_() if case["bias"] else None
    if way == "pointwise":  # a layer after it may change its result in place
        changed = WAYS[way](geometry, x, weight, bias).relu_().sum()
        torch.testing.assert_close(changed, reference(geometry, x, weight, bias).relu().sum())
    inputs = [x, weight] if bias is None else [x, weight, bias]
    found, expected = WAYS[way](geometry, x, weight, bias), reference(geometry, x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_a_network_of_all_kinds_of_convolutions(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 1), nn.GELU(), nn.Conv2d(24, 8, 1, 2), nn.Conv2d(8, 8, 3, padding="same")),
        *(nn.Conv2d(8, 8, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    module = module.to(device, dtype).eval()
    space = ParameterSpace.from_module(module)
    noise = 1 + 0.2 * torch.randn(3, space.dim, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    theta = (space.flatten(module.state_dict()) * noise).requires_grad_()
    x = torch.randn(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    network = TaskNetwork(module, space)
    together = network(theta, x)
    alone = torch.stack([network(row, images) for row, images in zip(theta, x, strict=True)])
    precise = theta.detach().double().requires_grad_()
    exact = TaskNetwork(module.double(), space)(precise, x.double())
    (theirs,) = gradients(exact, [precise])
    tolerance = 20 * torch.finfo(dtype).eps
    scale = exact.abs().max().item()
    assert (together - exact).abs().max() <= tolerance * scale
    assert (alone - exact).abs().max() <= tolerance * scale
    for output in (together, alone):
        (ours,) = gradients(output, [theta])
        assert (ours.double() - theirs).norm() <= 2 * tolerance * theirs.norm()
