"""A CSV of image paths and labels to an ImagePool."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import decode_files
from pyro_smat.episodes.readers.folders import canonical_split


def read_csv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    channels: int = 3,
    split: str | None = None,
) -> ImagePool:
    """Read images listed in a CSV with a header.

    Columns: ``path`` (or ``filename``) and ``label``; also ``domain`` and ``split`` where there are such. Labels are
    names, taken as text; classes and domains are in the order of their names, images in the order of the lines. All
    images are decoded once, into memory: N x channels x H x W bytes.

    Args:
        path: the CSV, UTF-8.
        root: the folder that relative paths start from; by default the one that holds the CSV.
        size: side in pixels of the square images that are wanted: the centre is cropped and scaled (bilinear). None
            keeps the files' own size, which must then be the same for all.
        channels: 1 (grey) or 3 (RGB).
        split: read only the lines of this split (val, valid and validation are one); needs the column.

    Returns:
        A pool with the one attribute ``"class"``.

    Raises:
        ValueError: for a CSV that is missing, empty or lacks a column; for a line without a path or label or whose file
            is not there (the line number is named); for an unknown split, an unreadable image or mixed sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected a CSV with the columns path, label")
    start = path.parent if root is None else Path(root)
    files, labels, domains = [], [], []
    splits_found: set[str] = set()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected a CSV in UTF-8") from error
    with io.StringIO(text, newline="") as stream:
        reader = csv.reader(stream)
        header = [name.strip().lower() for name in next(reader, [])]
        columns = _columns(path, header, split)
        for line in reader:
            if not any(cell.strip() for cell in line):
                continue
            where = f"{path}, line {reader.line_num}"
            if len(line) != len(header):
                raise ValueError(f"{where} has {len(line)} fields; expected {len(header)}: {header}")
            cells = {name: line[i].strip() for name, i in columns.items()}
            empty = [name for name, cell in cells.items() if not cell]
            if empty:
                raise ValueError(f"{where} has nothing in column {empty[0]!r}; expected a value")
            splits_found.add(cells.get("split", ""))
            if split is not None and canonical_split(cells["split"]) != canonical_split(split):
                continue
            file = start / cells["path"]
            if not file.is_file():
                raise ValueError(f"{where}: {file} is not there; expected an image file (root={start})")
            files.append(file)
            labels.append(cells["label"])
            domains.append(cells.get("domain", "all"))
    if not files:
        of_split = f" of split {split!r}; it has the splits {sorted(splits_found)}" if splits_found and split else ""
        raise ValueError(f"{path} lists no images{of_split}; expected at least one line after the header")
    classes, domain_names = sorted(set(labels)), sorted(set(domains))
    return ImagePool(
        images=decode_files(files, size, channels),
        labels=torch.tensor([classes.index(label) for label in labels])[:, None],
        attributes=("class",),
        class_names=(tuple(classes),),
        domain=torch.tensor([domain_names.index(name) for name in domains]),
        domain_names=tuple(domain_names),
    )


def _columns(path: Path, header: list[str], split: str | None) -> dict[str, int]:
    """Where each column stands that is read."""
    place = {name: i for i, name in enumerate(header)}
    found = {"path": place.get("path", place.get("filename"))}
    found |= {name: place.get(name) for name in ("label", "domain", "split")}
    missing = [name for name in ("path", "label", *(("split",) if split is not None else ())) if found[name] is None]
    if missing:
        raise ValueError(
            f"{path} has the columns {header} and lacks {missing}; expected a header with path (or filename) and "
            "label, and domain and split where needed"
        )
    return {name: i for name, i in found.items() if i is not None}
