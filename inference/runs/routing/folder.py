"""A folder of tasks: ``tasks/<task>/support/<class>/*`` and ``tasks/<task>/query/[<class>/]*``.

``support/`` is what ``pyro-smat adapt`` takes, ``query/`` what ``pyro-smat predict`` takes, or class folders where the
true classes are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

from pyro_smat.episodes.readers.listing import EXPECTED, image_files, name_of, subfolders
from pyro_smat.inference.runs.routing.tasks import ListedImage, ListedTask, Listing, Part


class FolderTasks:
    """The sub-folders of a folder, in the order of their names. Hidden ones are passed over.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _folders(self) -> list[Path]:
        found = subfolders(self.root)
        if not found:
            raise ValueError(f"{self.root} has no folders in it; expected one for each task, with support/ and query/")
        return found

    def identity(self) -> dict[str, str]:
        names = hashlib.sha256("/".join(folder.name for folder in self._folders).encode("utf-8", "surrogateescape"))
        return {"kind": "folder", "names": names.hexdigest()}

    def listing(self, size: int, most: int) -> Listing:
        count = len(self._folders)
        return Listing(tuple(Part(min(size, count - start), (start,)) for start in range(0, count, size)))

    def read(self, part: Part) -> Iterator[ListedTask]:
        for folder in islice(self._folders, part.start[0], part.start[0] + part.count):
            try:
                yield _task(folder)
            except (OSError, ValueError) as error:
                yield ListedTask(_name(folder), failure=str(error))

    def file(self, listed: str) -> Path:
        return Path(listed)


def _task(folder: Path) -> ListedTask:
    inside = {name_of(one): one for one in subfolders(folder)}
    if "support" not in inside:
        raise ValueError(f"{folder} has the folders {sorted(inside)[:8]}; expected support/ and query/")
    loose, _ = image_files(inside["support"])
    if loose:
        raise ValueError(f"{loose[0]} is in no class folder; expected support/<class>/ with the images")
    query: list[ListedImage] = []
    if "query" in inside:
        files, _ = image_files(inside["query"])
        query = [ListedImage(str(file), str(file), None) for file in files] + _classes(inside["query"])
    return ListedTask(name_of(folder), tuple(_classes(inside["support"])), tuple(query))


def _classes(root: Path) -> list[ListedImage]:
    """The images of class folders, by class and name."""
    found = []
    for folder in subfolders(root):
        files, _ = image_files(folder)
        if not files:
            raise ValueError(f"class folder {folder} has no images; expected {EXPECTED}")
        found += [ListedImage(str(file), str(file), name_of(folder)) for file in files]
    return found


def _name(folder: Path) -> str:
    return folder.name.encode("utf-8", "replace").decode()
