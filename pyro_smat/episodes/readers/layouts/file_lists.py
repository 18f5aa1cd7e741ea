"""CUB, Cars, Places and Plantae as in the cross-domain few-shot benchmark: images and one JSON list for each split."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import decode_files
from pyro_smat.episodes.readers.duplicates import warn_of_duplicates
from pyro_smat.episodes.readers.layouts.rows import missing
from pyro_smat.registry import register

_SPLITS = {"train": "base", "validation": "val", "valid": "val", "test": "novel"}


@register("layout", "file_lists")
def read_file_lists(path: Path, split: str, size: int | None, channels: int) -> ImagePool:
    """``base.json``, ``val.json`` and ``novel.json``: ``{"label_names", "image_names", "image_labels"}``.

    The lists hold absolute paths of the machine that wrote them: an image is looked for below ``path`` by the longest
    end of its path that is there, and nowhere else.

    Args:
        path: the folder that holds the lists, such as ``filelists/cub``.
        split: train (base), val or test (novel), or base, val, novel, noval themselves.
        size, channels: as for folders.

    Raises:
        ValueError: for a list that is missing or holds something else, or an image that is not below ``path``.
    """
    folder = Path(path)
    file = folder / f"{_SPLITS.get(split, split)}.json"
    if not file.is_file():
        raise missing(folder, split, f"{file.name} with label_names, image_names and image_labels")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        names, images, labels = (list(said[key]) for key in ("label_names", "image_names", "image_labels"))
        called = [str(names[label]) for label in labels]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        expected = "label_names, image_names and image_labels"
        raise ValueError(f"{file} is no file list ({error!r}); expected {expected}") from error
    if len(images) != len(labels):
        raise ValueError(f"{file} has {len(images)} image_names and {len(labels)} image_labels; expected as many")
    files = [_below(folder, str(image), file) for image in images]
    classes = sorted(set(called))  # a list names the classes of all splits
    place = {name: k for k, name in enumerate(classes)}
    codes = torch.tensor([place[name] for name in called])
    pixels = decode_files(files, size, channels)
    warn_of_duplicates(str(file), pixels, codes, lambda row: files[row].name)
    return ImagePool(pixels, codes[:, None], ("class",), (tuple(classes),), torch.zeros(len(files), dtype=torch.long))


def _below(folder: Path, image: str, file: Path) -> Path:
    parts = [part for part in PurePosixPath(image.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        if (found := folder.joinpath(*parts[start:])).is_file():
            return found
    raise ValueError(f"{file} lists {image}, which is not below {folder}; expected the listed images in it")
