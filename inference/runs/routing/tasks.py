"""What a task is before it is decoded, and what lists tasks: the border between files and routing."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

Role = Literal["support", "query"]
ROLES: dict[str, Role] = {"support": "support", "train": "support", "query": "query", "test": "query"}


class ListedImage(NamedTuple):
    """An image that has not been decoded.

    Attributes:
        name: what messages call it.
        content: the path of its file, as text, or its bytes.
        label: its class; None where nobody says.
    """

    name: str
    content: str | bytes
    label: str | None


@dataclass(frozen=True)
class ListedTask:
    """A task that has not been decoded.

    Attributes:
        name: unique among the tasks of a run.
        support, query: its images, in the order in which they are answered.
        failure: why it cannot be routed; None where nothing speaks against it.
    """

    name: str
    support: tuple[ListedImage, ...] = ()
    query: tuple[ListedImage, ...] = ()
    failure: str | None = None

    def checked(self) -> ListedTask:
        """The same, with what is wrong with its labels as its failure.

        Example:
            >>> ListedTask("one class", (ListedImage("0.png", b"", "cat"),)).checked().failure
            "the support has the classes ['cat']; expected at least two"
        """
        if self.failure is not None:
            return self
        classes = {image.label for image in self.support}
        unlabelled = [image.name for image in self.support if image.label is None]
        foreign = [image for image in self.query if image.label is not None and image.label not in classes]
        if unlabelled:
            return ListedTask(self.name, failure=f"support image {unlabelled[0]} has no label; expected one for each")
        if len(classes) < 2:
            return ListedTask(
                self.name, failure=f"the support has the classes {sorted(map(str, classes))}; expected at least two"
            )
        if foreign:
            one = foreign[0]
            return ListedTask(
                self.name, failure=f"query {one.name} is of class {one.label!r}, of which there is no support image"
            )
        return self


@dataclass(frozen=True)
class Part:
    """Consecutive tasks that are routed and kept together.

    Attributes:
        count: how many.
        start: where the first one is, as the source has it.
    """

    count: int
    start: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """All tasks, cut into parts.

    Attributes:
        parts: in order.
        images: how many all tasks have together.
        distinct: the different image files, in the order of their first appearance; None for more than were asked for.
    """

    parts: tuple[Part, ...]
    images: int = 0
    distinct: tuple[str, ...] | None = None


class TaskSource(Protocol):
    """Something that lists tasks."""

    def identity(self) -> dict[str, str]:
        """What must not change between a run and its continuation, by name."""

    def listing(self, size: int, most: int) -> Listing:
        """One pass over all tasks.

        Args:
            size: tasks a part.
            most: distinct images that are worth listing.

        Raises:
            ValueError: for tasks that cannot be told apart, or a source that cannot be read.
        """

    def read(self, part: Part) -> Iterator[ListedTask]:
        """The tasks of a part; one that cannot be listed has a failure."""

    def file(self, listed: str) -> Path:
        """The file of an image whose content is a path.

        Raises:
            ValueError: when it may not be read, or is not there.
        """


class NameCheck:
    """Whether all names are different, in 8 bytes a name."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, name: str) -> None:
        """Look at one more name."""
        self._digests.append(_digest(name))

    def refuse_repeated(self, where: str, names: Callable[[], Iterable[str]], remedy: str) -> None:
        """Raises ValueError for a name that came twice; ``names`` are all of them once more, to find it."""
        digests = np.sort(np.array(self._digests, dtype=np.uint64))
        again = set(digests[1:][digests[1:] == digests[:-1]].tolist())
        if again:
            name = next(name for name in names() if _digest(name) in again)
            raise ValueError(f"{where}: task {name!r} is there more than once; {remedy}")


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
