"""Tux Paint: stamps, most of them cut-out photographs, by folder."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from archives import STAMPS, read_members
from pictures import Domain, Picture, by_digest, on_white_square
from PIL import Image, UnidentifiedImageError

_ROOT = "usr/share/tuxpaint/stamps/"
_VARIANTS = ("_mirror.png", "_flip.png", "_mirror_flip.png")  # the same stamp turned


def class_of(member: str, names: Collection[str]) -> str | None:
    """Of ``names`` the folder of a stamp, ``"animals/birds"`` or ``"vehicles"``; None for other members."""
    if not member.startswith(_ROOT) or not member.endswith(".png") or member.endswith(_VARIANTS):
        return None
    parts = member.removeprefix(_ROOT).split("/")[:-1]
    return next((name for name in ("/".join(parts[:2]), "".join(parts[:1])) if name in names), None)


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    members = read_members(paths["stamps"], lambda member: class_of(member, names) is not None, STAMPS.remedy)
    for name in names:
        for member in by_digest([m for m in members if class_of(m, names) == name]):
            try:
                pixels = on_white_square(Image.open(io.BytesIO(members[member])))
            except (UnidentifiedImageError, OSError, SyntaxError) as error:
                raise ValueError(f"{paths['stamps']}: {member} cannot be decoded ({error}); {STAMPS.remedy}") from error
            yield Picture(member.removeprefix(_ROOT), (name,), pixels)


TUXPAINT_DOMAIN = Domain(
    "tuxpaint", ("class",), {"stamps": STAMPS}, _pictures, 10, "stamps by folder, most of them photographs"
)
