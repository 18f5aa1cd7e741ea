"""Tar shards of tasks, as WebDataset writes them: each file of a task begins with the task's name.

A member is ``<task>.support.<class>.<image>.png`` and ``<task>.query.[<class>.]<image>.png``, one sample a task for
WebDataset, whose keys end at the first dot; or it has the path of a folder of tasks,
``<task>/support/<class>/<image>.png``. The files of a task follow each other. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pyro_smat.episodes.readers.listing import SUFFIXES
from pyro_smat.inference.runs.routing.tasks import ROLES, ListedImage, ListedTask, Listing, NameCheck, Part

LARGEST_MEMBER = 64 * 2**20  # bytes
LARGEST_TASK = 2**30  # bytes of all images of one task


class TarTasks:
    """Plain tar files, each one part.

    Args:
        paths: the shards, in order.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def identity(self) -> dict[str, str]:
        listed = "/".join(f"{path.name}:{path.stat().st_size}" for path in self.paths)
        return {"kind": "tar", "shards": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()}

    def listing(self, size: int, most: int) -> Listing:
        parts, seen = [], NameCheck()
        for number, path in enumerate(self.paths):
            before = len(seen)
            for name in _names(path):
                seen.add(name)
            if len(seen) == before:
                raise ValueError(
                    f"{path} has no member like TASK.support.CLASS.NAME.png or TASK/support/CLASS/NAME.png"
                )
            parts.append(Part(len(seen) - before, (number,)))
        seen.refuse_repeated(
            str(self.paths[0].parent),
            lambda: (name for path in self.paths for name in _names(path)),
            "expected all files of a task one after the other, in one shard",
        )
        return Listing(tuple(parts))

    def read(self, part: Part) -> Iterator[ListedTask]:
        path = self.paths[part.start[0]]
        with _opened(path) as archive:
            for name, members in groupby(_members(archive, path), key=lambda one: one[1]):
                yield _task(archive, path, name, members)

    def file(self, listed: str) -> Path:
        raise ValueError(f"{listed} is in a tar file; expected a file")


_Member = tuple[tarfile.TarInfo, str, str, str | None]  # with task, role and class


def _names(path: Path) -> Iterator[str]:
    with _opened(path) as archive:
        for name, _ in groupby(_members(archive, path), key=lambda one: one[1]):
            yield name


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:", encoding="utf-8")
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected a plain tar file, not compressed") from error


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[_Member]:
    """Files with task, role and class; what is called otherwise is passed over."""
    while True:
        try:
            member = archive.next()
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{path} is damaged or cut off ({error}); replace the shard") from error
        if member is None:
            return
        archive.members = []  # type: ignore[attr-defined]  # which grow with every member that is read
        place = _place(member.name)
        if place is not None and member.isfile():
            yield member, *place


def _place(name: str) -> tuple[str, str, str | None] | None:
    """Task, role and class (None where it isn't said) of a member's name; None for what is no image of a task.

    Example:
        >>> _place("a/7.support.cat.0.png"), _place("./7/query/0.png")
        (('a/7', 'support', 'cat'), ('7', 'query', None))
    """
    path = name.removeprefix("./")
    folder, _, file = path.rpartition("/")
    key, *fields = file.split(".")
    if not key or not file.lower().endswith(SUFFIXES):
        return None
    mark = "."
    if fields[0] in ROLES:
        task, role, rest = f"{folder}/{key}" if folder else key, fields[0], fields[1:-1]
    else:
        mark = "/"
        parts = path.split("/")
        at = next((i for i in range(len(parts) - 2, 0, -1) if parts[i] in ROLES), 0)
        if not at:
            return None
        task, role, rest = "/".join(parts[:at]), parts[at], parts[at + 1 :]
    return task, ROLES[role], mark.join(rest[:-1]) or None


def _task(archive: tarfile.TarFile, path: Path, name: str, members: Iterator[_Member]) -> ListedTask:
    images: dict[str, list[ListedImage]] = {"support": [], "query": []}
    total, failure = 0, None
    for member, _, role, label in members:
        total += member.size
        if member.size > LARGEST_MEMBER or total > LARGEST_TASK:
            failure = (
                f"{path}, {member.name} has {member.size:,} bytes, its task {total:,}; expected at most "
                f"{LARGEST_MEMBER:,} and {LARGEST_TASK:,}"
            )
        if failure is None:
            content = archive.extractfile(member)
            assert content is not None
            images[role].append(ListedImage(f"{path}, {member.name}", content.read(), label))
    if failure is not None:
        return ListedTask(name, failure=failure)
    return ListedTask(name, tuple(images["support"]), tuple(images["query"]))
