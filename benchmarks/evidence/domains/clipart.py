"""Clipart: folders of the Open Clip Art Library as classes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from archives import CLIPART, read_members
from pictures import Domain, Picture, by_digest, on_white_square
from PIL import Image, UnidentifiedImageError

MOST = 40  # images of a class
_ROOT = "usr/share/openclipart/png/"
_PIXELS = 20_000_000  # larger drawings are passed over


def class_of(member: str) -> str | None:
    """The folder of a drawing, ``"animals/birds"``; None for other members."""
    if not (member.startswith(_ROOT) and member.endswith(".png")):
        return None
    return member.removeprefix(_ROOT).rpartition("/")[0]


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    wanted = set(names)
    members = read_members(paths["clipart"], lambda name: class_of(name) in wanted, CLIPART.remedy)
    for name in names:
        kept = 0
        for member in by_digest([m for m in members if class_of(m) == name]):
            try:
                if _pixels(members[member]) > _PIXELS:
                    continue
                pixels = on_white_square(Image.open(io.BytesIO(members[member]), formats=("PNG",)))
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
                continue  # the package holds a few damaged files
            if pixels.std() < 4:
                continue  # white, or white on transparent
            yield Picture(member.removeprefix(_ROOT), (name,), pixels)
            kept += 1
            if kept == MOST:
                break


def _pixels(raw: bytes) -> int:
    """Width times height of a PNG, from its header: some are of hundreds of megapixels."""
    return int.from_bytes(raw[16:20], "big") * int.from_bytes(raw[20:24], "big")


CLIPART_DOMAIN = Domain(
    "clipart", ("class",), {"clipart": CLIPART}, _pictures, 10, "folders of drawings, at most 40 of each"
)
