"""Fashion-MNIST as class folders: the test set's images, read from the original idx files.

Part of `prepare.py`: archive or idx files -> arrays -> `class_folders`. The idx format: two zero bytes, a type code
(8 is uint8), the number of dimensions, each dimension as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from archives import FASHION_MNIST, find_or_fetch, read_members
from class_folders import Manifest, already_made, write_class_folders
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
IMAGES = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"

_MEMBER = re.compile(rf"(?:.*/)?({IMAGES}|{LABELS})\.gz")


def prepare_fashion_mnist(
    out: Path, source: Path | None = None, *, per_class: int = 200, force: bool = False
) -> Manifest:
    """Write ``out/<class>/<position in the test set>.png``, the first ``per_class`` images of each of the 10 classes.

    Args:
        out: the folder to make.
        source: folder that holds the .deb, or the two t10k idx files (gzipped or not); None fetches the .deb.
        per_class: images of each class, at least 1 and at most what each class has (1000).
        force: make it anew where it stands already.

    Raises:
        ValueError: a file is missing, damaged or no idx file; images and labels disagree; a class has fewer images than
            ``per_class``; ``out`` exists and was not made here.
    """
    if per_class < 1:
        raise ValueError(f"--per-class is {per_class}; expected at least 1")
    recipe = {"dataset": "fashion-mnist", "per_class": per_class}
    if (ready := already_made(out, recipe, force=force)) is not None:
        return ready
    with tempfile.TemporaryDirectory() as downloads:
        contents, origins = _read_files(source, Path(downloads))
        images = parse_idx(contents[IMAGES], dimensions=3, what=f"{IMAGES} of {origins[0]}")
        labels = parse_idx(contents[LABELS], dimensions=1, what=f"{LABELS} of {origins[-1]}")
        if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
            raise ValueError(
                f"{LABELS} of {origins[-1]} holds {len(labels)} labels up to {labels.max(initial=0)} for {len(images)} "
                f"images, expected as many as images and at most {len(CLASSES) - 1}; {FASHION_MNIST.remedy}"
            )
        rows = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
        for name, of_class in zip(CLASSES, rows, strict=True):
            if len(of_class) < per_class:
                raise ValueError(
                    f"class {name} has {len(of_class)} images, --per-class asks for {per_class}: ask for fewer"
                )
        chosen = np.concatenate([of_class[:per_class] for of_class in rows])

        def pictures() -> Iterator[tuple[str, Image.Image]]:
            for row in tqdm(chosen, desc="fashion-mnist", unit="image"):
                yield f"{CLASSES[labels[row]]}/{row:05d}.png", Image.fromarray(images[row])

        return write_class_folders(
            out, pictures(), recipe=recipe, origins=origins, licences={"fashion-mnist": FASHION_MNIST.licence}
        )


def parse_idx(raw: bytes, dimensions: int, what: str) -> NDArray[np.uint8]:
    """The uint8 array in an idx file, gzipped or not.

    Args:
        raw: the file's bytes.
        dimensions: the number of dimensions it has to have.
        what: the file's name for error messages.

    Raises:
        ValueError: damaged compression, another type or number of dimensions, or another length than the header says.
    """
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{what} is damaged ({error}); {FASHION_MNIST.remedy}") from error
    start = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) < start:
        raise ValueError(
            f"{what} starts with {raw[:4].hex(' ') or 'nothing'}, expected 00 00 08 {dimensions:02x} (idx, uint8, "
            f"{dimensions} dimensions); {FASHION_MNIST.remedy}"
        )
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{what} holds {len(raw) - start} values, its header says {shape}; {FASHION_MNIST.remedy}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _read_files(source: Path | None, downloads: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Bytes of the two idx files, and the files on disk that they come from."""
    if source is not None:
        loose = {
            name: path for name in (IMAGES, LABELS) for path in (source / name, source / f"{name}.gz") if path.is_file()
        }
        if len(loose) == 2:
            return {name: path.read_bytes() for name, path in loose.items()}, list(loose.values())
    archive = find_or_fetch(FASHION_MNIST, source, downloads)
    return read_archive(archive), [archive]


def read_archive(archive: Path) -> dict[str, bytes]:
    """Bytes of the test set's two idx files in the Debian package, by `IMAGES` and `LABELS`.

    Raises:
        ValueError: one of them is not there.
    """
    members = read_members(archive, lambda name: _MEMBER.fullmatch(name) is not None, FASHION_MNIST.remedy)
    contents = {match[1]: raw for name, raw in members.items() if (match := _MEMBER.fullmatch(name))}
    if missing := {IMAGES, LABELS} - contents.keys():
        raise ValueError(f"{archive} lacks {', '.join(sorted(missing))}; {FASHION_MNIST.remedy}")
    return contents
