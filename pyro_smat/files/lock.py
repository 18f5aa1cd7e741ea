"""Locks: one process at a time works in a folder. The second one learns who is there, or waits.

The operating system holds the lock (``flock``) and lets go of it when the process ends, however it ends; the file says
who has it. Where a file system has no such locks, the process id in the file decides: one that is gone holds nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_smat.files.atomic import remove_leftovers

LOCK = ".lock"
_PAUSE = 0.2  # seconds between two looks
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


_held: dict[Path, int] = {}  # lock files of this process -> the thread that works there


@contextmanager
def locked(folder: Path, *, wait: bool = False, name: str = LOCK) -> Iterator[None]:
    """The folder is this process's own inside the block; what a killed process left half-written is removed first.

    Args:
        folder: it is made where it is not there.
        wait: for the process that has it, however long; otherwise it is an error.
        name: of the lock file; locks of different names don't know of each other.

    A thread that has the folder already may lock it again.

    Raises:
        ValueError: when another process has the folder (named by process id and host), or it cannot be written to.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> with locked(folder):
        ...     sorted(path.name for path in folder.iterdir())
        ['.lock']
    """
    path = folder.resolve() / name
    if _held.get(path) == threading.get_ident():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path, wait)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        _held[path] = threading.get_ident()
        remove_leftovers(folder)
        yield
    finally:
        _held.pop(path, None)
        with suppress(OSError):
            path.unlink()  # while it is ours: whoever opened it meanwhile sees that it is gone, and opens another
        os.close(handle)


def _acquire(path: Path, wait: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            free = _try_lock(handle)
            if free and _is_current(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                return handle
            holder = None if free else _holder(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if free:
            continue  # the file was removed by the process that had it: look again
        if not wait:
            raise ValueError(f"{path}: in use by {holder}; wait for it (--wait), stop it, or choose another folder")
        time.sleep(_PAUSE)


def _try_lock(handle: int) -> bool:
    """Whether the lock is ours now."""
    try:
        import fcntl
    except ImportError:  # Windows
        return not _is_alive(_read(handle))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return not _is_alive(_read(handle))
        raise
    # On a network file system flock may hold for one host alone: believe another host's file.
    holder = _read(handle)
    return not holder or holder.get("host") == socket.gethostname()


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process may still run; of another host nobody knows."""
    if not isinstance(holder.get("pid"), int) or holder["pid"] == os.getpid():
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _holder(handle: int) -> str:
    holder = _read(handle)
    where = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        where += " (if that has ended, remove the lock file)"
    return where
