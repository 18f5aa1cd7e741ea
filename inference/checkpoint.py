"""Checkpoints: nested states of tensors and plain values in one safetensors file, written atomically.

Tensors go into the file as tensors, everything else into its JSON header; nothing is pickled. A file is complete or
absent: it is written beside its final name, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

STATE_KEY = "state"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader (or a crash) sees the old or the new content, never a part.

    Raises:
        ValueError: when the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ValueError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dict (or list) of tensors, numbers, strings, booleans and None."""
    tensors: dict[str, Tensor] = {}
    skeleton = _detach(state, "", tensors)
    write_atomically(path, save(tensors, {STATE_KEY: json.dumps(skeleton)}))


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU.

    Raises:
        ValueError: for a missing, truncated or foreign file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a saved state")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); it is truncated or foreign") from error
    if STATE_KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file without a {STATE_KEY!r} header; expected one saved by pyro-smat")
    return _attach(json.loads(metadata[STATE_KEY]), tensors)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Every global generator of torch that a run on ``device`` uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _detach(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"__tensor__": path}
    if isinstance(value, dict):
        # Keys keep their type: optimizer states have integer keys.
        return {"__dict__": [[key, _detach(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_detach(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _attach(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_attach(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _attach(item, tensors) for key, item in value["__dict__"]}
    return value
