"""An index of tasks: a CSV or a Parquet file with the columns task, role (or split), path and label, one line an image.

The lines of a task follow each other. ``role`` is support or query (train and test mean the same), ``label`` is empty
for queries of unknown class, ``path`` is below the folder of the index. The index is streamed, never held.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pyro_smat.episodes.readers.listed_file import listed_file
from pyro_smat.inference.runs.routing.parts import parquet
from pyro_smat.inference.runs.routing.tasks import ROLES, ListedImage, ListedTask, Listing, NameCheck, Part, Role

LONGEST_LINE = 2**20  # bytes
_COLUMNS = ("task", "role", "path", "label")


class Row(NamedTuple):
    """A line of an index.

    Attributes:
        position: where it starts, as :meth:`IndexTasks.rows` takes it.
        number: its own, for messages.
        task, role, path, label: its cells, empty where there is nothing.
    """

    position: tuple[int, ...]
    number: int
    task: str
    role: str
    path: str
    label: str


class IndexTasks(ABC):
    """The tasks of an index.

    Args:
        path: the index.
        root: the folder that relative paths start from, and that all must be in; default: the index's own.
        allow_outside: whether it may list files elsewhere.

    Attributes:
        unit: what a line is called in messages.
    """

    unit: ClassVar[str]

    def __init__(self, path: Path, root: Path | None = None, *, allow_outside: bool = False) -> None:
        self.path, self.root = path, path.parent if root is None else root
        self.allow_outside = allow_outside

    @abstractmethod
    def rows(self, start: Sequence[int] = ()) -> Iterator[Row]:
        """The lines from a position on; of nothing, all.

        Raises:
            ValueError: for a file that is no such index; names the line.
        """

    def where(self, row: Row) -> str:
        """The place of a line, for messages."""
        return f"{self.path}, {self.unit} {row.number}"

    def identity(self) -> dict[str, str]:
        return {"kind": "index", "sha256": self._digest, "root": str(self.root.resolve())}

    @cached_property
    def _digest(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def listing(self, size: int, most: int) -> Listing:
        starts: list[tuple[int, ...]] = []
        seen, images = NameCheck(), 0
        distinct: dict[str, None] | None = {}
        task = ""
        for row in self.rows():
            if not row.task:
                raise ValueError(f"{self.where(row)} has nothing in column 'task'; expected the name of a task")
            if row.task != task:
                task = row.task
                if len(seen) % size == 0:
                    starts.append(row.position)
                seen.add(task)
            images += 1
            if distinct is not None:
                distinct[row.path] = None
                if len(distinct) > most:
                    distinct = None
        if not starts:
            raise ValueError(f"{self.path} lists no tasks; expected at least one line after the header")
        seen.refuse_repeated(
            str(self.path), lambda: (name for name, _ in groupby(self.rows(), key=_task_of)), "sort the lines by task"
        )
        counts = [min(size, len(seen) - number * size) for number in range(len(starts))]
        parts = tuple(Part(count, start) for count, start in zip(counts, starts, strict=True))
        return Listing(parts, images, None if distinct is None else tuple(distinct))

    def read(self, part: Part) -> Iterator[ListedTask]:
        tasks = groupby(self.rows(part.start), key=_task_of)
        for name, rows in islice(tasks, part.count):
            support: list[ListedImage] = []
            query: list[ListedImage] = []
            try:
                for row in rows:
                    (support if self._role(row) == "support" else query).append(self._image(row))
            except (OSError, ValueError) as error:
                yield ListedTask(name, failure=str(error))
            else:
                yield ListedTask(name, tuple(support), tuple(query))

    def _role(self, row: Row) -> Role:
        role = ROLES.get(row.role) or ROLES.get(row.role.lower())
        if role is None:
            raise ValueError(f"{self.where(row)}: role is {row.role!r}; expected one of {', '.join(ROLES)}")
        return role

    def _image(self, row: Row) -> ListedImage:
        if not row.path:
            raise ValueError(f"{self.where(row)} has nothing in column 'path'; expected an image file")
        label = row.label if row.label.isascii() else unicodedata.normalize("NFC", row.label)
        return ListedImage(row.path, row.path, label or None)

    def file(self, listed: str) -> Path:  # looked up when it is decoded: each once where images are held
        return listed_file(self.root, listed, str(self.path), self.allow_outside)


class CSVTasks(IndexTasks):
    """An index in CSV, UTF-8."""

    unit = "line"

    def rows(self, start: Sequence[int] = ()) -> Iterator[Row]:
        with self.path.open("rb") as file:
            lines = _Lines(file, self.path)
            reader = csv.reader(lines, strict=True)
            try:
                header = [name.strip().lower() for name in next(reader, [])]
                pick = itemgetter(*_places(self.path, header))
                if start:
                    lines.go_to(*start)
                    reader = csv.reader(lines, strict=True)
                position = lines.position
                for cells in reader:
                    if cells:
                        if len(cells) != len(header):
                            raise ValueError(
                                f"{self.path}, line {lines.number} has {len(cells)} fields; expected {len(header)}: "
                                f"{header}"
                            )
                        yield Row(position, lines.number, *map(str.strip, pick(cells)))
                    position = lines.position
            except csv.Error as error:
                raise ValueError(f"{self.path}: after line {lines.number} it is no CSV ({error})") from error


class ParquetTasks(IndexTasks):
    """An index in Parquet. A position is the number of the row."""

    unit = "row"

    def rows(self, start: Sequence[int] = ()) -> Iterator[Row]:
        arrow, files = parquet()
        skipped = start[0] if start else 0
        try:
            with files.ParquetFile(self.path) as file:
                names = {name.lower(): name for name in file.schema_arrow.names}
                wanted = [list(names.values())[i] for i in _places(self.path, list(names))]
                number, groups = 0, list[int]()
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    if groups or number + count > skipped:
                        groups.append(group)
                    else:
                        number += count
                for batch in file.iter_batches(4096, row_groups=groups, columns=wanted):
                    columns = [[_text(cell) for cell in batch.column(name).to_pylist()] for name in wanted]
                    for cells in zip(*columns, strict=True):
                        if number >= skipped:
                            yield Row((number,), number, *cells)
                        number += 1
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as Parquet ({error}); expected an index of tasks") from error


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


_task_of = attrgetter("task")


def _places(path: Path, header: list[str]) -> list[int]:
    """Where task, role, path and label stand."""
    names = ["role" if name == "split" and "role" not in header else name for name in header]
    names = ["path" if name == "filename" and "path" not in header else name for name in names]
    missing = [name for name in _COLUMNS if names.count(name) != 1]
    if missing:
        raise ValueError(
            f"{path} has the columns {header}, and not one each of {missing}; expected task, role (or split), path and "
            "label"
        )
    return [names.index(name) for name in _COLUMNS]


class _Lines(Iterable[str]):
    """The lines of a file, and where the next one starts: bytes and number."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path, self._offset, self.number = file, path, 0, 0

    @property
    def position(self) -> tuple[int, int]:
        return self._offset, self.number

    def go_to(self, offset: int, number: int) -> None:
        self._file.seek(offset)
        self._offset, self.number = offset, number

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LONGEST_LINE):
            self._offset += len(line)
            self.number += 1
            if len(line) == LONGEST_LINE:
                raise ValueError(f"{self._path}, line {self.number} is longer than {LONGEST_LINE:,} bytes")
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self._path}, line {self.number} is not UTF-8 text ({error.reason}); save it as UTF-8"
                ) from error
