"""miniImageNet: class folders, images with a table of each split, or either of the two pickles that go round."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.readers.layouts.rows import file_of_split, item, missing, pool_of_rows
from pyro_smat.episodes.readers.table import read_csv
from pyro_smat.files.pickled_arrays import read_pickled_arrays
from pyro_smat.registry import register

_CACHES = ["mini-imagenet-cache-{}.pkl"]
_SPLIT = ["miniImageNet_category_split_{}.pickle", "miniImageNet_category_split_train_phase_{}.pickle"]


@register("layout", "mini_imagenet")
def read_mini_imagenet(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """Read what is there of

    - ``mini-imagenet-cache-<split>.pkl``: ``image_data`` (N, 84, 84, 3) and ``class_dict``, the rows of every class;
    - ``miniImageNet_category_split_<split>.pickle``: ``data`` and ``labels``;
    - ``<split>.csv`` (filename, label) beside ``images/``;
    - ``<split>/<class>/*.jpg``.

    Raises:
        ValueError: when none of them is there, or a file holds something else.
    """
    path = Path(path)
    if (file := file_of_split(path, _CACHES, split)) is not None:
        data = read_pickled_arrays(file)
        images, classes = item(data, ["image_data"], file), item(data, ["class_dict"], file)
        rows = [(row, name) for name, of_class in classes.items() for row in of_class]
        return pool_of_rows(np.asarray(images)[[row for row, _ in rows]], [n for _, n in rows], size, channels)
    if (file := file_of_split(path, _SPLIT, split)) is not None:
        data = read_pickled_arrays(file)
        return pool_of_rows(item(data, ["data"], file), item(data, ["labels"], file), size, channels)
    if (file := file_of_split(path, ["{}.csv"], split)) is not None:
        return read_csv(file, path / "images", size, channels)
    if (path / split).is_dir():
        return read_folder(path / split, size, channels)
    names = ", ".join(pattern.format(split) for pattern in (*_CACHES, *_SPLIT))
    raise missing(path, split, f"{names}, {split}.csv or a folder {split}")
