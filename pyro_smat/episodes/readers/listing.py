"""What is in a folder of images: the files that are read, and the others with the reason why they are not.

First look of the readers at a folder. Nothing is left out silently: what is not read is counted and named in one
:class:`LeftOutWarning`. Only hidden files and folders (``.DS_Store``, ``.cache``, ``__MACOSX``) are passed over.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import features

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2"),
    *((".avif",) if features.check("avif") else ()),
)
EXPECTED = "png, jpg, webp, bmp, gif, tif, ppm or avif files"
_MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP",
)
_NAMED = 3  # files that a message names for each reason


class LeftOutWarning(UserWarning):
    """Files that lie among images and were not read."""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read.

    Attributes:
        path: where it is.
        reason: why, as a message says it.
    """

    path: Path
    reason: str


def image_files(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """Image files directly in a folder by name, and the files there that are none; hidden ones are passed over.

    An image is known by its suffix (any case), or where it has none by its first bytes.
    """
    found, left_out = [], []
    for path in sorted(folder.iterdir(), key=by_name):
        if hidden(path) or path.is_dir():
            continue
        reason = _reason(path)
        if reason:
            left_out.append(LeftOut(path, reason))
        else:
            found.append(path)
    return found, left_out


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in a folder, by name; hidden ones are passed over."""
    return sorted((p for p in folder.iterdir() if not hidden(p) and p.is_dir()), key=by_name)


def name_of(path: Path) -> str:
    """A file's or folder's name in composed Unicode (NFC), as Linux and Windows write it and the Mac does not.

    Raises:
        ValueError: for a name that is no text.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {path.name!r} in {str(path.parent)!r} is not valid UTF-8; rename it") from None
    return unicodedata.normalize("NFC", path.name)


def by_name(path: Path) -> tuple[str, str]:
    """The order of files: of their composed names, the same on every machine."""
    return unicodedata.normalize("NFC", path.name), path.name


def hidden(path: Path) -> bool:
    """Whether a file or folder is passed over."""
    return path.name.startswith(".") or path.name == "__MACOSX"  # the latter is left by zip files made on a Mac


def describe(left_out: Sequence[LeftOut]) -> str:
    """ "12 files were left out: 9 end in .heic (a.heic, ...), 3 are dangling links (b.png, ...)"."""
    groups: dict[str, list[str]] = {}
    for one in left_out:
        groups.setdefault(one.reason, []).append(f"{one.path.parent.name}/{one.path.name}")
    parts = [
        f"{len(names)} {reason} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for reason, names in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]
    were = "1 file was" if len(left_out) == 1 else f"{len(left_out)} files were"
    return f"{were} left out: {', '.join(parts)}"


def warn_of(root: Path, left_out: Iterable[LeftOut]) -> None:
    """One warning of everything that was left out, if anything was."""
    everything = list(left_out)
    if everything:
        warnings.warn(f"{root}: {describe(everything)}", LeftOutWarning, stacklevel=3)


def looks_like_image(path: Path) -> bool:
    """Whether a file begins as one of the formats that are read."""
    with path.open("rb") as file:
        start = file.read(16)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    avif = start[4:12] in (b"ftypavif", b"ftypavis")
    netpbm = start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in b" \t\r\n" and len(start) > 2
    return start.startswith(_MAGIC) or webp or avif or netpbm


def _reason(path: Path) -> str:
    """Why a file is not read; empty for an image."""
    if not path.is_file():
        return "are dangling links" if path.is_symlink() else "are no regular files"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return ""
    if suffix == ".avif":
        return "end in .avif, which this Pillow cannot read"
    try:
        image = looks_like_image(path)
    except OSError:
        return "cannot be opened"
    if not suffix or not suffix[1:].isalnum() or suffix[1:].isdigit():  # "IMG.2024": not a suffix that says something
        return "" if image else "have no suffix and are no images"
    return f"end in {suffix}" + (" though they look like images" if image else "")
