"""Plain values: what JSON can say. It has no NaN and no infinity: they become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_smat.files.atomic import write_atomically


def plain(value: Any) -> Any:
    """A nested value with None in the place of every NaN and infinity; tuples become lists.

    Example:
        >>> plain({"auroc": float("nan"), "interval": (0.1, float("inf"))})
        {'auroc': None, 'interval': [0.1, None]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a nested value as strict JSON, atomically.

    Raises:
        ValueError: when the folder cannot be written to.
    """
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False).encode())
