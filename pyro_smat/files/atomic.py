"""Atomic writing: a reader, or a crash, sees the old file or the new one, never a part.

A file is written beside its final name, flushed to disk and renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, for writers that take a path; it replaces ``path`` in the end.

    Nothing is left of it when the block raises.

    Args:
        path: the final name; its folder is made.

    Raises:
        ValueError: when the folder cannot be written to, or is full.

    Example:
        >>> from tempfile import mkdtemp
        >>> target = Path(mkdtemp()) / "notes.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise ValueError(
            f"{path.parent}: {path.name} cannot be written ({error.strerror}); make room or choose another folder"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, all of it or nothing.

    Raises:
        ValueError: when the folder cannot be written to, or is full.
    """
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(content)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of killed processes from a folder and those inside it; returns them.

    A file of a process that still runs is left alone, as is one that a process of another host may be writing.
    """
    removed = []
    for path in sorted(folder.rglob(".*")):
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["host"] == _host() and not _runs(int(found["pid"])) and path.is_file():
            _remove(path)
            removed.append(path)
    return removed


_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
