"""Checkpoints: nested states of tensors and plain values in one safetensors file, written atomically.

Tensors go into the file as tensors, everything else into its JSON header; nothing is pickled. A file is complete or
absent: it is written beside its final name, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
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
        ValueError: when the folder cannot be written to, or is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise ValueError(
            f"{path.parent}: {path.name} cannot be written ({error.strerror}); make room or choose another folder"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dict of dicts, lists, tensors, numbers, text, booleans and None; tuples become lists.

    Raises:
        ValueError: for a value or key of another type (it is named), or a folder that cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _detach(state, "state", tensors, set())
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
    try:
        state = _attach(json.loads(metadata[STATE_KEY]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its {STATE_KEY!r} header is not a state; expected one saved by pyro-smat") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}; expected one saved by pyro-smat, which holds a dict")
    return state


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


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _detach(value: Any, path: str, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    """The JSON side of a state; its tensors are collected on the way."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{path}"  # the number keeps the keys 1, "1" and "a/b", "a" -> "b" apart
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor  # the format refuses shared memory
        storages.add(storage)
        return {"__tensor__": name}
    if isinstance(value, dict):
        # Keys keep their type: optimizer states have integer keys.
        for key in value:
            if not isinstance(key, str | int):
                raise ValueError(f"{path} has a key {key!r}; expected text or whole numbers as keys of a saved state")
        return {"__dict__": [[key, _detach(item, f"{path}/{key}", tensors, storages)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_detach(item, f"{path}/{index}", tensors, storages) for index, item in enumerate(value)]
    if not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{path} is a {type(value).__name__}; expected tensors, numbers, text, None, lists or dicts in a state"
        )
    return value


def _attach(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_attach(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _attach(item, tensors) for key, item in value["__dict__"]}
    return value
