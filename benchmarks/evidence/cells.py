"""Cells: results that are written one by one as they come, so that a run that is killed loses one of them at most.

A cell is a JSON file ``FOLDER/KEY/KEY.json`` with what it was made with; it appears whole or not at all. Asking for a
cell under other settings is an error, not another cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pyro_smat.files import plain, read_record, write_record

FORMAT = 1
_SCHEMA = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Cells:
    """The cells of one seed and one experiment.

    Attributes:
        folder: where they are.
        settings: plain values that all of them depend on.
        writer: the command that writes them, for messages.

    Example:
        >>> from tempfile import mkdtemp
        >>> cells = Cells(Path(mkdtemp()), {"episodes": 7}, "table.py run")
        >>> cells.write(("emoji", "1-shot"), {"accuracy": [0.5]})
        >>> cells.read(("emoji", "1-shot")), cells.read(("emoji", "5-shot"))
        ({'accuracy': [0.5]}, None)
    """

    folder: Path
    settings: Mapping[str, Any]
    writer: str

    def read(self, key: tuple[str, ...]) -> dict[str, Any] | None:
        """The values of a cell; None where there is none yet.

        Raises:
            ValueError: for one that was made under other settings, which are named, or a damaged file.
        """
        path = self._path(key)
        if not path.exists():
            return None
        found = _read(path, self.writer)
        wanted = plain(dict(self.settings))
        if found["settings"] != wanted:
            changed = {
                k: (found["settings"].get(k), wanted.get(k))
                for k in sorted({*found["settings"], *wanted})
                if found["settings"].get(k) != wanted.get(k)
            }
            told = ", ".join(f"{k} was {old!r} and is {new!r}" for k, (old, new) in changed.items())
            raise ValueError(f"{path}: made with other settings ({told}); use them, or another --output")
        values: dict[str, Any] = found["values"]
        return values

    def write(self, key: tuple[str, ...], values: Mapping[str, Any]) -> None:
        """Keep values: numbers, text, arrays, and mappings and sequences of such."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": list(key), "settings": dict(self.settings), "values": _listed(values)}
        write_record(path, plain({"format": FORMAT, **content}))

    def missing(self, keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Those of the keys that have no cell yet."""
        return [key for key in keys if self.read(key) is None]

    def _path(self, key: tuple[str, ...]) -> Path:
        *folders, last = (re.sub(r"[^\w.,+-]+", "_", part) for part in key)
        return self.folder.joinpath(*folders, f"{last}.json")


def every_cell(folder: Path, writer: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]]:
    """Key, settings and values of all cells under a folder."""
    for path in sorted(folder.rglob("*.json")):
        found = _read(path, writer)
        yield tuple(found["key"]), found["settings"], found["values"]


def _listed(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, Mapping):
        return {str(k): _listed(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read(path: Path, writer: str) -> dict[str, Any]:
    return read_record(path, _SCHEMA, format=FORMAT, writer=writer)
