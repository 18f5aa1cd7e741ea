"""Arrays of a layout to a pool, and the file of a split: what the layouts of one folder share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.dataset import read_dataset


class Images(Protocol):
    """A sequence or an array of images, or what decodes them one at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...


class _Rows(Dataset[Any]):
    def __init__(self, images: Images, labels: Sequence[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.images[row], self.labels[row]


def pool_of_rows(
    images: Images,
    labels: Sequence[Any],
    size: int | None,
    channels: int,
    names: Mapping[int, str] | None = None,
) -> ImagePool:
    """A pool of images (arrays ``(H, W, C)`` uint8 or PIL images) whose labels are numbers or names.

    Raises:
        ValueError: for another number of labels than images.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images have {len(labels)} labels; expected one for each image")
    known = sorted({_plain(label) for label in labels}, key=lambda label: (isinstance(label, str), label))
    place = {label: k for k, label in enumerate(known)}
    codes = [place[_plain(label)] for label in labels]
    called = [str((names or {}).get(label, label)) for label in known]
    return read_dataset(_Rows(images, codes), size, channels, class_names=called)


def file_of_split(folder: Path, patterns: Sequence[str], split: str) -> Path | None:
    """The first file that is there; ``{}`` in a pattern stands for the split (val is also valid and validation)."""
    spellings = ("val", "valid", "validation") if split in ("val", "valid", "validation") else (split,)
    found = (folder / pattern.format(name) for pattern in patterns for name in spellings)
    return next((path for path in found if path.is_file()), None)


def missing(folder: Path, split: str, expected: str) -> ValueError:
    """The error of a layout that is not there."""
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "nothing"
    return ValueError(f"{folder} has no split {split!r} of this layout: found {there}; expected {expected}")


def item(data: Any, keys: Sequence[str], path: Path) -> Any:
    """The value of the first key, of text or bytes, that a pickled dictionary has."""
    if isinstance(data, dict):
        for key in keys:
            for spelling in (key, key.encode()):
                if spelling in data:
                    return data[spelling]
    has = sorted(map(str, data))[:8] if isinstance(data, dict) else type(data).__name__
    raise ValueError(f"{path} holds {has}; expected a dictionary with {' or '.join(keys)}")


def _plain(label: Any) -> Any:
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    return label.item() if isinstance(label, np.generic) else label
