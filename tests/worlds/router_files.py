"""What tests do to saved files: change router.json so that its digest holds, and walk every text in a JSON value."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

Place = tuple[str | int, ...]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """router.json without its digest."""
    values: dict[str, Any] = json.loads((folder / "router.json").read_text())
    values.pop("digest", None)
    return values


def write_description(folder: Path, values: dict[str, Any]) -> None:
    """router.json with a digest that holds, as someone who wants to be believed would write it."""
    plain = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    (folder / "router.json").write_text(json.dumps({**values, "digest": sha256(plain)}))


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """router.safetensors, and its digest in router.json."""
    save_file(tensors, folder / "router.safetensors")
    digest = sha256((folder / "router.safetensors").read_bytes())
    write_description(folder, {**read_description(folder), "weights": digest})


def texts(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where the strings are, at any depth."""
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts(inner, (*place, index))


def replaced(value: Any, place: Place, text: Any) -> Any:
    """A copy with another value at one place."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = text
    return changed
