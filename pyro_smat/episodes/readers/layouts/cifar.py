"""CIFAR-FS and FC100 as pickles or folders, and CIFAR-10 and CIFAR-100 as their python batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.readers.layouts.rows import file_of_split, item, missing, pool_of_rows
from pyro_smat.episodes.readers.listing import image_files
from pyro_smat.files.pickled_arrays import read_pickled_arrays
from pyro_smat.registry import register

_BATCHES = {"train": "data_batch_", "test": "test_batch"}


@register("layout", "cifar_fs")
def read_cifar_fs(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """``CIFAR_FS_<split>.pickle``, or ``data/<class>/*.png`` beside ``splits/bertinetto/<split>.txt``.

    Raises:
        ValueError: when neither is there, or the file holds something else.
    """
    path = Path(path)
    if (file := file_of_split(path, ["CIFAR_FS_{}.pickle"], split)) is not None:
        return _pickled(file, size, channels)
    if (listed := file_of_split(path, ["splits/bertinetto/{}.txt"], split)) is None:
        return _folders(path, split, size, channels, "CIFAR_FS_")
    images, labels = [], []
    for name in listed.read_text(encoding="utf-8").split():
        found, _ = image_files(path / "data" / name)
        images += [np.asarray(Image.open(file).convert("RGB")) for file in found]
        labels += [name] * len(found)
    return pool_of_rows(images, labels, size, channels)


@register("layout", "fc100")
def read_fc100(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """``FC100_<split>.pickle``, or ``<split>/<class>/*.png``.

    Raises:
        ValueError: when neither is there, or the file holds something else.
    """
    if (file := file_of_split(Path(path), ["FC100_{}.pickle"], split)) is not None:
        return _pickled(file, size, channels)
    return _folders(Path(path), split, size, channels, "FC100_")


@register("layout", "cifar")
def read_cifar(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """CIFAR-100's ``train`` and ``test`` with ``meta``, or CIFAR-10's ``data_batch_*`` and ``test_batch``.

    Raises:
        ValueError: when neither is there, or a file holds something else.
    """
    path = Path(path)
    files = [path / split] if (path / split).is_file() else sorted(path.glob(_BATCHES.get(split, "-") + "*"))
    if not files:
        raise missing(path, split, "train or test, or data_batch_1 to data_batch_5 and test_batch")
    data = [read_pickled_arrays(file) for file in files]
    images = np.concatenate([_square(item(d, ["data"], f), f) for d, f in zip(data, files, strict=True)])
    labels = [x for d, f in zip(data, files, strict=True) for x in item(d, ["fine_labels", "labels"], f)]
    about = file_of_split(path, ["meta", "batches.meta"], split)
    names = [] if about is None else item(read_pickled_arrays(about), ["fine_label_names", "label_names"], about)
    called = {k: name.decode() if isinstance(name, bytes) else name for k, name in enumerate(names)}
    return pool_of_rows(images, labels, size, channels, called)


def _pickled(file: Path, size: int | None, channels: int) -> ImagePool:
    data = read_pickled_arrays(file)
    return pool_of_rows(_square(item(data, ["data"], file), file), item(data, ["labels"], file), size, channels)


def _square(data: Any, file: Path) -> NDArray[np.uint8]:
    """Images ``(N, H, W, 3)``, from that or from rows of 3 x 32 x 32 values."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim not in (2, 4):
        what = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{file} has data of {what}; expected uint8 (N, 3072) or (N, H, W, 3)")
    return data if data.ndim == 4 else data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _folders(path: Path, split: str, size: int | None, channels: int, prefix: str) -> ImagePool:
    if not (path / split).is_dir():
        raise missing(path, split, f"{prefix}{split}.pickle, or a folder {split} of class folders")
    return read_folder(path / split, size, channels)
