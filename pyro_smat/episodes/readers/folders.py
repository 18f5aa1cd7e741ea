"""Folders of images to an ImagePool: ``root/<class>/``, ``root/<split>/<class>/`` and ``root/<domain>/<class>/``."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import decode_files, image_files, subfolders

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_folder(
    root: str | os.PathLike[str], size: int | None = None, channels: int = 3, split: str | None = None
) -> ImagePool:
    """Read a folder of class folders; what its levels mean is found out.

    ================================ ================================================================================
    ``root/<class>/*.png``           classes
    ``root/<split>/<class>/*.png``   when all folders are called train, val, valid, validation or test; choose with
                                     ``split`` (the three spellings of val are one). A split may hold domains.
    ``root/<domain>/<class>/*.png``  otherwise; a class of the same name in two domains is one class
    ================================ ================================================================================

    Files end in png, jpg, jpeg, webp, bmp or gif (any case). Hidden files are ignored, and so is everything that is not
    an image. The order is that of the names, the same on every machine. All images are decoded once, into memory:
    N x channels x H x W bytes.

    Args:
        root: the folder.
        size: side in pixels of the square images that are wanted: the centre is cropped and scaled (bilinear). None
            keeps the files' own size, which must then be the same for all.
        channels: 1 (grey) or 3 (RGB).
        split: which split to read, where there are splits.

    Returns:
        A pool with the one attribute ``"class"``.

    Raises:
        ValueError: for a missing or empty folder, a class folder without images, images where folders are expected, an
            unknown split, an unreadable image or mixed sizes; names the file or folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}; expected a folder of class folders")
    domains = _domains(_choose_split(root, split))
    classes = sorted({folder.name for folders in domains.values() for folder in folders})
    place = {name: k for k, name in enumerate(classes)}
    files, labels, domain = [], [], []
    for d, folders in enumerate(domains.values()):
        for folder in folders:
            found = _class_images(folder)
            files += found
            labels += [place[folder.name]] * len(found)
            domain += [d] * len(found)
    return ImagePool(
        images=decode_files(files, size, channels),
        labels=torch.tensor(labels)[:, None],
        attributes=("class",),
        class_names=(tuple(classes),),
        domain=torch.tensor(domain),
        domain_names=tuple(domains),
    )


def canonical_split(name: str) -> str:
    """One spelling for each split: valid and validation are val, case does not matter."""
    return SPLITS.get(name.strip().lower(), name.strip().lower())


def _choose_split(root: Path, split: str | None) -> Path:
    folders = subfolders(root)
    nested = [f for f in folders if subfolders(f)]
    has_splits = bool(nested) and all(f.name.lower() in SPLITS for f in folders)
    names = [f.name for f in folders]
    if not has_splits:
        if split is not None:
            raise ValueError(
                f"split is {split!r}, but {root} holds {names[:8]}; expected folders called train, val or test in it, "
                "or split=None"
            )
        return root
    if split is None:
        raise ValueError(f"{root} has the splits {names}; expected split= one of them")
    chosen = [f for f in folders if canonical_split(f.name) == canonical_split(split)]
    if len(chosen) != 1:
        raise ValueError(f"split {split!r} fits {[f.name for f in chosen]} of {names} in {root}; expected exactly one")
    return chosen[0]


def _domains(root: Path) -> dict[str, list[Path]]:
    """Class folders by domain; one domain ``"all"`` for ``root/<class>/``."""
    folders = subfolders(root)
    loose = image_files(root)
    if loose:
        raise ValueError(
            f"{root} holds images such as {loose[0].name}{' beside folders' if folders else ''}; expected a folder for "
            "each class with its images in it"
        )
    if not folders:
        raise ValueError(f"{root} is empty; expected a folder for each class with its images in it")
    nested = [f for f in folders if subfolders(f)]
    if not nested:
        return {"all": folders}
    flat = [f for f in folders if f not in nested]
    if flat:
        raise ValueError(
            f"{nested[0]} holds folders but {flat[0]} does not; expected all folders of {root} to be classes (images "
            "in them) or all to be domains (class folders in them)"
        )
    for f in nested:
        if image_files(f):
            raise ValueError(
                f"{f} holds images beside folders, such as {image_files(f)[0].name}; expected only one kind"
            )
    return {f.name: subfolders(f) for f in nested}


def _class_images(folder: Path) -> list[Path]:
    if subfolders(folder):
        raise ValueError(
            f"class folder {folder} holds folders such as {subfolders(folder)[0].name}; expected only images"
        )
    found = image_files(folder)
    if not found:
        raise ValueError(f"class folder {folder} has no images; expected png, jpg, jpeg, webp, bmp or gif files")
    return found
