"""Folders of images to an ImagePool and back: ``root/[<split>/ or <domain>/]<class>/``."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from pathlib import Path

import torch
from PIL import Image

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import MAX_PIXELS, decode_files
from pyro_smat.episodes.readers.duplicates import warn_of_duplicates
from pyro_smat.episodes.readers.listing import EXPECTED, LeftOut, describe, image_files, name_of, subfolders, warn_of

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class LayoutWarning(UserWarning):
    """A folder whose levels may mean something else than what they were read as."""


def read_folder(
    root: str | os.PathLike[str],
    size: int | None = None,
    channels: int = 3,
    split: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> ImagePool:
    """Read a folder of class folders; what its levels mean is found out.

    ================================ ================================================================================
    ``root/<class>/*.png``           classes
    ``root/<split>/<class>/*.png``   when all folders, or two different ones, are called train (or training), val
                                     (valid, validation, dev) or test (testing); choose with ``split``, also others
                                     beside them such as extra. A split may hold domains.
    ``root/<domain>/<class>/*.png``  otherwise; a class of the same name in two domains is one class. ``split`` still
                                     chooses a folder that is called as it.
    ================================ ================================================================================

    Files end in png, jpg, jpeg, jfif, webp, bmp, gif, tif, ppm or avif (any case), or in nothing and are known by their
    content. Hidden files are passed over; other files that are not images are left out, with a warning that counts and
    names them. Names are compared in composed Unicode (NFC). The order is that of the names, the same on every machine.
    All images are decoded once, into memory:
    N x channels x H x W bytes.

    Args:
        root: the folder.
        size: side in pixels of the square images that are wanted: the centre is cropped and scaled (bilinear). None
            keeps the files' own size, which must then be the same for all.
        channels: 1 (grey) or 3 (RGB).
        split: which split to read, where there are splits.
        max_pixels: of an image; larger ones are refused before they are decoded.

    Returns:
        A pool with the one attribute ``"class"``.

    Raises:
        ValueError: for a missing or empty folder, a class folder without images, images where folders are expected, an
            unknown split, an unreadable or too large image, mixed sizes, or a folder whose name is not valid UTF-8;
            names the file or folder.

    Warns:
        LeftOutWarning: of files that were not read, with the reasons.
        DuplicateWarning: of images that are there more than once.
        LayoutWarning: of domains one of which is called as a split is.

    Example:
        >>> import tempfile
        >>> from pyro_smat.episodes import glyph_pool
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_folder(write_folder(glyph_pool("validation"), folder, attribute="style", each=4), size=16)
        ImagePool(28 images 3x16x16, class: 7 classes)
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}; expected a folder of class folders")
    left_out: list[LeftOut] = []
    domains = _domains(_choose_split(root, split), left_out)
    classes = sorted({name_of(folder) for folders in domains.values() for folder in folders})
    place = {name: k for k, name in enumerate(classes)}
    files, labels, domain = [], [], []
    for d, folders in enumerate(domains.values()):
        for folder in folders:
            found = _class_images(folder, left_out)
            files += found
            labels += [place[name_of(folder)]] * len(found)
            domain += [d] * len(found)
    warn_of(root, left_out)
    images, codes = decode_files(files, size, channels, max_pixels), torch.tensor(labels)
    warn_of_duplicates(str(root), images, codes, lambda row: str(files[row].relative_to(root)))
    return ImagePool(
        images=images,
        labels=codes[:, None],
        attributes=("class",),
        class_names=(tuple(classes),),
        domain=torch.tensor(domain),
        domain_names=tuple(domains),
    )


def write_folder(
    pool: ImagePool, root: str | os.PathLike[str], *, attribute: str | None = None, each: int | None = None
) -> Path:
    """Write a pool as class folders of PNG files, ``root/<class>/`` (``root/<domain>/<class>/`` where it has domains).

    Args:
        pool: the images.
        root: the folder; made where it is missing.
        attribute: whose classes the folders are; default: the first.
        each: images of a class, evenly spaced in the order of the pool; default: all.

    Returns:
        The folder.

    Raises:
        ValueError: for an attribute that the pool does not have.

    Example:
        >>> import tempfile
        >>> from pyro_smat.episodes import glyph_pool
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_folder(write_folder(glyph_pool("validation"), folder, attribute="face", each=5), channels=1)
        ImagePool(35 images 1x32x32, class: 7 classes)
    """
    attribute = pool.attributes[0] if attribute is None else attribute
    if attribute not in pool.attributes:
        raise ValueError(f"the pool has no attribute {attribute!r}; expected one of {', '.join(pool.attributes)}")
    column, root = pool.attributes.index(attribute), Path(root)
    for d, domain in enumerate(pool.domain_names):
        place = root / domain if len(pool.domain_names) > 1 else root
        for label, name in enumerate(pool.class_names[column]):
            rows = ((pool.labels[:, column] == label) & (pool.domain == d)).nonzero().flatten().tolist()
            if not rows:
                continue  # a class of another domain
            folder = place / re.sub(r'[<>:"/\\|?*]', "-", name)  # what some system does not allow in a name
            folder.mkdir(parents=True, exist_ok=True)
            for row in rows[:: max(1, len(rows) // (each or len(rows) or 1))][:each]:
                pixels = pool.images[row].movedim(0, -1).squeeze(-1).numpy()
                Image.fromarray(pixels).save(folder / f"{row}.png")
    return root


def folder_has_splits(root: str | os.PathLike[str]) -> bool:
    """Whether one of the folders in ``root`` is called as a split is and holds folders, not images.

    Example:
        >>> import tempfile
        >>> from pyro_smat.episodes import glyph_pool
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_folder(glyph_pool("validation"), folder, attribute="style", each=1)
        ...     folder_has_splits(folder)
        False
    """
    return any(
        canonical_split(folder.name) in SPLITS.values() and subfolders(folder) for folder in subfolders(Path(root))
    )


def canonical_split(name: str) -> str:
    """One spelling for each split, such as val for valid and validation; case does not matter.

    Example:
        >>> canonical_split("Training"), canonical_split("extra")
        ('train', 'extra')
    """
    plain = unicodedata.normalize("NFC", name).strip().lower()
    return SPLITS.get(plain, plain)


def _choose_split(root: Path, split: str | None) -> Path:
    folders = subfolders(root)
    nested = [f for f in folders if subfolders(f)]
    known = [f for f in nested if canonical_split(f.name) in SPLITS.values()]
    whole = bool(nested) and all(canonical_split(f.name) in SPLITS.values() for f in folders)
    has_splits = whole or len({canonical_split(f.name) for f in known}) > 1
    names = [f.name for f in folders]
    if not has_splits and (split is None or canonical_split(split) not in {canonical_split(f.name) for f in known}):
        if split is not None:
            raise ValueError(
                f"split is {split!r}, but {root} holds {names[:8]}; expected a folder called {split} in it, or "
                "split=None"
            )
        if known:
            warnings.warn(
                f"{root}: {names[:8]} are read as domains, and {known[0].name!r} is called as a split is; for it alone "
                f"pass split={known[0].name!r}",
                LayoutWarning,
                stacklevel=3,
            )
        return root
    if split is None:
        raise ValueError(f"{root} has the splits {names}; expected split= one of them")
    chosen = [f for f in folders if canonical_split(f.name) == canonical_split(split)]
    if len(chosen) != 1:
        raise ValueError(f"split {split!r} fits {[f.name for f in chosen]} of {names} in {root}; expected exactly one")
    return chosen[0]


def _domains(root: Path, left_out: list[LeftOut]) -> dict[str, list[Path]]:
    """Class folders by domain; one domain ``"all"`` for ``root/<class>/``. Files that are no images are added."""
    folders = subfolders(root)
    loose, others = image_files(root)
    left_out += others
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
    domains: dict[str, list[Path]] = {}
    for f in nested:
        loose, others = image_files(f)
        left_out += others
        if loose:
            raise ValueError(f"{f} holds images beside folders, such as {loose[0].name}; expected only one kind")
        domains.setdefault(name_of(f), []).extend(subfolders(f))
    return domains


def _class_images(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    if subfolders(folder):
        raise ValueError(
            f"class folder {folder} holds folders such as {subfolders(folder)[0].name}; expected only images"
        )
    found, others = image_files(folder)
    if not found:
        why = f" ({describe(others)})" if others else ""
        raise ValueError(f"class folder {folder} has no images; expected {EXPECTED}{why}")
    left_out += others
    return found
