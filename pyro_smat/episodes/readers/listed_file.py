"""The file that a line of a table names: below the root, there, and whatever Unicode form its name has on the disk."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def listed_file(start: Path, listed: str, where: str, allow_outside: bool) -> Path:
    """The file of a line, below the root unless that is allowed; also when its name is in another Unicode form.

    Args:
        start: the root.
        listed: what the line says, absolute or from the root.
        where: the line, for messages.
        allow_outside: whether a file may be elsewhere.

    Raises:
        ValueError: for a file that is outside, or is not there.
    """
    file = start / listed
    inside = file.resolve().is_relative_to(start.resolve())
    if not inside and ".." not in Path(listed).parts:  # a link below the root may lead elsewhere
        inside = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(start))
    if not inside and not allow_outside:
        raise ValueError(
            f"{where}: {listed!r} is outside of {start}; expected files below it: pass root= the folder that they are "
            "in, or allow_outside=True"
        )
    if not file.is_file():
        file = _other_form(start, listed) or file
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is a dangling link" if file.is_symlink() else "is not there"
        raise ValueError(f"{where}: {file} {kind}; expected an image file (root={start})")
    return file


def _other_form(start: Path, listed: str) -> Path | None:
    """A file whose path differs in the Unicode form of its letters: composed (NFC) or not, as the Mac writes them."""
    place = start
    for part in Path(listed).parts:
        if (place / part).exists():
            place = place / part
            continue
        wanted = unicodedata.normalize("NFC", part)
        try:
            place = next(p for p in place.iterdir() if unicodedata.normalize("NFC", p.name) == wanted)
        except (StopIteration, OSError):
            return None
    return place
