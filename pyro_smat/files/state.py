"""States: nested dicts of tensors and plain values in one safetensors file that knows when it is damaged.

Tensors go into the file as tensors, everything else into its JSON header, with a SHA-256 digest of both; nothing is
pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_smat.files.atomic import write_atomically

STATE_KEY = "state"
DIGEST_KEY = "sha256"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a nested dict of dicts, lists, tensors, numbers, text, booleans and None; tuples become lists.

    Raises:
        ValueError: for a value or key of another type (it is named), or a folder that cannot be written to.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"step": 3, "weights": [torch.ones(2)]})
        >>> load_state(path)
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_detach(state, "state", tensors, set()))
    write_atomically(path, save(tensors, {STATE_KEY: header, DIGEST_KEY: _digest(header, tensors)}))


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU.

    Raises:
        ValueError: for a missing, truncated, damaged or foreign file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a saved state")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); it is truncated or foreign") from error
    missing = [key for key in (STATE_KEY, DIGEST_KEY) if key not in metadata]
    if missing:
        raise ValueError(f"{path}: a safetensors file without a {missing[0]!r} header; expected one saved by pyro-smat")
    found = _digest(metadata[STATE_KEY], tensors)
    if found != metadata[DIGEST_KEY]:
        raise ValueError(
            f"{path}: is damaged: its content has the SHA-256 digest {found}, and {metadata[DIGEST_KEY]} was expected; "
            "restore it from a copy, or write it again"
        )
    try:
        state = _attach(json.loads(metadata[STATE_KEY]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its {STATE_KEY!r} header is not a state; expected one saved by pyro-smat") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}; expected one saved by pyro-smat, which holds a dict")
    return state


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the header and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
