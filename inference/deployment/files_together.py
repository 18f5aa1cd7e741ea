"""Files that belong together: whenever a process is killed, those of before are there or those of now.

Several files cannot be renamed at once. One of them decides: the others wait beside it, as NAME.new, until it is there,
and whoever reads takes the one that has the digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pyro_smat.files import write_atomically


def waiting(path: Path) -> Path:
    """Where a file waits for the one that decides."""
    return path.with_name(f"{path.name}.new")


def write_together(deciding: Path, content: bytes, others: Mapping[Path, bytes]) -> None:
    """Write several files of one folder.

    Args:
        deciding: the file whose renaming decides; the others must say its digest, or have theirs said.
        content: of that file.
        others: path -> content.

    Raises:
        ValueError: when the folder cannot be written to, or is full; the files of before are then there.
    """
    try:
        for path, small in others.items():
            write_atomically(waiting(path), small)
        write_atomically(deciding, content)
    except ValueError:
        for path in others:
            with suppress(OSError):
                waiting(path).unlink(missing_ok=True)
        raise
    for path in others:
        os.replace(waiting(path), path)


def verified(path: Path, expected: str) -> Path:
    """The file of this name, or the one that waits for it, that has a digest.

    Args:
        path: the file.
        expected: its SHA-256 digest.

    Raises:
        ValueError: where neither is there with it.
    """
    if waiting(path).is_file() and _digest(waiting(path)) == expected:
        return waiting(path)
    verify(path, expected)
    return path


def verify(path: Path, expected: str) -> None:
    """Refuse a file that has not the digest.

    Args:
        path: the file.
        expected: its SHA-256 digest; "" for the weights of format 3, which has none.

    Raises:
        ValueError: for a file that is missing or has another digest.
    """
    if not expected:
        return
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected what RoutedClassifier.save wrote beside router.json")
    found = _digest(path)
    if found != expected:
        raise ValueError(
            f"{path}: is damaged, or of another router: its SHA-256 digest is {found}, and {expected} was expected"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
