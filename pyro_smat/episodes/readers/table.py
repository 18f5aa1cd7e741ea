"""A CSV of image paths and labels to an ImagePool, and the choice between a table and a folder by what is there."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from pathlib import Path

import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import MAX_PIXELS, decode_files
from pyro_smat.episodes.readers.duplicates import warn_of_duplicates
from pyro_smat.episodes.readers.folders import canonical_split, folder_has_splits, read_folder
from pyro_smat.episodes.readers.listed_file import listed_file
from pyro_smat.episodes.readers.listing import looks_like_image

LARGEST_TABLE = 2**28  # bytes: room for two million lines
_BOMS = {  # the longer ones first: UTF-32 begins as UTF-16 does
    BOM_UTF8: "utf-8-sig",
    BOM_UTF32_LE: "utf-32",
    BOM_UTF32_BE: "utf-32",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}


def read_pool(
    path: str | os.PathLike[str],
    size: int | None = None,
    channels: int = 3,
    split: str | None = None,
    *,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> ImagePool:
    """Read a folder of class folders or a CSV of paths: what ``path`` is decides, not what its name ends in.

    Args:
        path: of a folder (:func:`~pyro_smat.episodes.readers.folders.read_folder`) or of a table (:func:`read_csv`).
        size, channels, split, max_pixels: as for these.
        allow_outside: whether a table may list files outside of its folder.

    Raises:
        ValueError: for a path that is not there, and as these do.
    """
    where = _existing(path)
    if where.is_dir():
        return read_folder(where, size, channels, split, max_pixels=max_pixels)
    return read_csv(where, None, size, channels, split, allow_outside=allow_outside, max_pixels=max_pixels)


def has_splits(path: str | os.PathLike[str]) -> bool:
    """Whether data has splits to choose from: a table with the column ``split``, or a folder with folders named so.

    Raises:
        ValueError: for a path that is not there, or a table that cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "images.csv").write_text("path,label,split")
        ...     has_splits(Path(folder, "images.csv"))
        True
    """
    where = _existing(path)
    if where.is_dir():
        return folder_has_splits(where)
    _check_table(where)
    return "split" in _header(_lines(csv.reader(io.StringIO(read_table_text(where), newline=""), strict=True), where))


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    channels: int = 3,
    split: str | None = None,
    *,
    allow_outside: bool = False,
    encoding: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImagePool:
    """Read images listed in a CSV with a header.

    Columns: ``path`` (or ``filename``) and ``label``; also ``domain`` and ``split`` where there are such. Labels are
    names, taken as text in composed Unicode (NFC); classes and domains are in the order of their names, images in the
    order of the lines. All images are decoded once, into memory: N x channels x H x W bytes.

    Args:
        path: the CSV, whatever its suffix: UTF-8, or UTF-16 with a byte order mark.
        root: the folder that relative paths start from, and that all must be in; by default the one that holds the CSV.
        size: side in pixels of the square images that are wanted: the centre is cropped and scaled (bilinear). None
            keeps the files' own size, which must then be the same for all.
        channels: 1 (grey) or 3 (RGB).
        split: read only the lines of this split (val, valid and validation are one); needs the column.
        allow_outside: whether files outside of ``root`` may be listed.
        encoding: of a CSV in another encoding, such as "latin-1".
        max_pixels: of an image; larger ones are refused before they are decoded.

    Returns:
        A pool with the one attribute ``"class"``.

    Raises:
        ValueError: for a CSV that is missing, empty or lacks a column; for a line without a path or label or whose file
            is not there or outside of the root (the line number is named); for text in another encoding, an unknown
            split, an unreadable or too large image or mixed sizes.

    Warns:
        DuplicateWarning: of images that are there more than once.

    Example:
        >>> import tempfile
        >>> from pyro_smat.episodes import glyph_pool, write_folder
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = write_folder(glyph_pool("validation"), name, attribute="style", each=4)
        ...     lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.glob("*/*.png"))]
        ...     _ = (folder / "images.csv").write_text(chr(10).join(["path,label", *lines]))
        ...     read_csv(folder / "images.csv", channels=1)
        ImagePool(28 images 1x32x32, class: 7 classes)
    """
    path = Path(path)
    _check_table(path)
    start = path.parent if root is None else Path(root)
    files, listed, labels, domains = [], [], [], []
    splits_found: set[str] = set()
    text = read_table_text(path, encoding)
    with io.StringIO(text, newline="") as stream:
        reader = csv.reader(stream, strict=True)
        lines = _lines(reader, path)
        header = _header(lines)
        columns = _columns(path, header, split)
        for line in lines:
            if not any(cell.strip() for cell in line):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(line) != len(header):
                raise ValueError(f"{where} has {len(line)} fields; expected {len(header)}: {header}")
            cells = {name: unicodedata.normalize("NFC", line[i]).strip() for name, i in columns.items()}
            empty = [name for name, cell in cells.items() if not cell]
            if empty:
                raise ValueError(f"{where} has nothing in column {empty[0]!r}; expected a value")
            splits_found.add(cells.get("split", ""))
            if split is not None and canonical_split(cells["split"]) != canonical_split(split):
                continue
            try:
                files.append(listed_file(start, line[columns["path"]].strip(), where, allow_outside))
            except OSError as error:  # a name that is too long, a folder that may not be read
                raise ValueError(
                    f"{where}: {error.strerror}: {cells['path'][:80]!r}; expected an image file"
                ) from error
            listed.append(line[columns["path"]].strip())
            labels.append(cells["label"])
            domains.append(cells.get("domain", "all"))
    if not files:
        of_split = f" of split {split!r}; it has the splits {sorted(splits_found)}" if splits_found and split else ""
        raise ValueError(f"{path} lists no images{of_split}; expected at least one line after the header")
    classes, domain_names = sorted(set(labels)), sorted(set(domains))
    place = {name: k for k, name in enumerate(classes)}
    images, codes = decode_files(files, size, channels, max_pixels), torch.tensor([place[label] for label in labels])
    warn_of_duplicates(str(path), images, codes, listed.__getitem__)
    return ImagePool(
        images=images,
        labels=codes[:, None],
        attributes=("class",),
        class_names=(tuple(classes),),
        domain=torch.tensor([domain_names.index(name) for name in domains]),
        domain_names=tuple(domain_names),
    )


def read_table_text(path: Path, encoding: str | None = None) -> str:
    """The text of a table: UTF-8, with or without a byte order mark, or UTF-16 and UTF-32 with one.

    Args:
        path: the file.
        encoding: of files that do not say their own, such as "latin-1".

    Raises:
        ValueError: for a file that is too large or not in this encoding; names the first line that is not, and what
            the bytes would be in Latin-1.
    """
    size = path.stat().st_size
    if size > LARGEST_TABLE:
        raise ValueError(f"{path} has {size:,} bytes; expected a table of at most {LARGEST_TABLE:,}")
    content = path.read_bytes()
    found = next((name for mark, name in _BOMS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or found or "utf-8")
    except LookupError:
        raise ValueError(f"encoding is {encoding!r}; expected a name that Python knows, such as 'latin-1'") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        if encoding or found:
            what = f"{path} is not UTF-8 text, and not {encoding or found} either"
            raise ValueError(f"{what} ({error.reason} at byte {error.start}); expected a CSV in UTF-8") from error
        start, end = content.rfind(b"\n", 0, error.start) + 1, content.find(b"\n", error.start)
        shown = content[start : end if end >= 0 else None].decode("latin-1").strip()[:60]
        raise ValueError(
            f"{path} is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x}; in Latin-1 it reads "
            f"{shown!r}. Save the table as UTF-8, or pass encoding='latin-1' (or 'cp1252')"
        ) from error
    if "\0" in text:
        kind = "UTF-16 without a byte order mark" if content[:64].count(0) > 16 else "a binary file"
        raise ValueError(f"{path} is not UTF-8 text: it holds NUL bytes, as {kind} does; expected a CSV in UTF-8")
    return text


def _lines(reader: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{path}: after line {getattr(reader, 'line_num', 0)} it is no CSV ({error})") from error


def _existing(path: str | os.PathLike[str]) -> Path:
    where = Path(path)
    if not where.exists():
        raise ValueError(f"{where} is not there; expected a folder of class folders, or a CSV with path and label")
    return where


def _check_table(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(f"{path} {what}; expected a CSV with the columns path, label")
    if looks_like_image(path):
        raise ValueError(f"{path} is an image; expected a CSV with the columns path, label")


def _header(lines: Iterator[list[str]]) -> list[str]:
    return [name.strip().lower() for name in next(lines, [])]


def _columns(path: Path, header: list[str], split: str | None) -> dict[str, int]:
    """Where each column stands that is read."""
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice:
        raise ValueError(f"{path} has the columns {twice} twice; expected different names")
    place = {name: i for i, name in enumerate(header)}
    found = {"path": place.get("path", place.get("filename"))}
    found |= {name: place.get(name) for name in ("label", "domain", "split")}
    missing = [name for name in ("path", "label", *(("split",) if split is not None else ())) if found[name] is None]
    if missing:
        raise ValueError(
            f"{path} has the columns {header} and lacks {missing}; expected a header with path (or filename) and "
            "label, and domain and split where needed" + _separator(header)
        )
    return {name: i for name, i in found.items() if i is not None}


def _separator(header: list[str]) -> str:
    """A hint where the fields are separated by something else than commas."""
    if len(header) == 1:
        for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in header[0]:
                return f", separated by commas: these are {name}"
    return ""
