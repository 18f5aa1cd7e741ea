"""tieredImageNet: PNGs in a pickle or an array, with labels in a second pickle; or class folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.readers.layouts.rows import file_of_split, item, missing, pool_of_rows
from pyro_smat.files.pickled_arrays import read_pickled_arrays
from pyro_smat.registry import register


@register("layout", "tiered_imagenet")
def read_tiered_imagenet(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """``<split>_images_png.pkl`` (or ``<split>_images.npz``) with ``<split>_labels.pkl``, or ``<split>/<class>/*.jpg``.

    Classes are the specific labels, called by ``label_specific_str`` where the file has it.

    Raises:
        ValueError: when neither is there, or a file holds something else.
    """
    path = Path(path)
    labelled = file_of_split(path, ["{}_labels.pkl"], split)
    pngs, arrays = (file_of_split(path, [f"{{}}_images{end}"], split) for end in ("_png.pkl", ".npz"))
    if labelled is not None and (pngs or arrays) is not None:
        said = read_pickled_arrays(labelled)
        labels = item(said, ["label_specific", "labels"], labelled)
        names = _names(said)
        if pngs is not None:
            return pool_of_rows(_Encoded(read_pickled_arrays(pngs), pngs), labels, size, channels, names)
        assert arrays is not None
        with np.load(arrays, allow_pickle=False) as stored:
            return pool_of_rows(stored["images"], labels, size, channels, names)
    if (path / split).is_dir():
        return read_folder(path / split, size, channels)
    raise missing(path, split, f"{split}_images_png.pkl and {split}_labels.pkl, or a folder {split} of class folders")


class _Encoded:
    """PNG files in a list, decoded one at a time."""

    def __init__(self, files: Any, path: Path) -> None:
        if not isinstance(files, list | np.ndarray):
            raise ValueError(f"{path} holds {type(files).__name__}; expected a list of encoded images")
        self.files, self.path = files, path

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Image.Image:
        file = self.files[row]
        try:
            raw = file if isinstance(file, bytes) else np.asarray(file, dtype=np.uint8).tobytes()
            return Image.open(io.BytesIO(raw), formats=("PNG", "JPEG")).convert("RGB")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: image {row} cannot be decoded ({error}); get the file again") from error


def _names(said: Any) -> dict[int, str]:
    """What the specific labels are called; {} where the file does not say."""
    try:
        names = item(said, ["label_specific_str"], Path())
    except ValueError:
        return {}
    return {k: name.decode() if isinstance(name, bytes) else str(name) for k, name in enumerate(names)}
