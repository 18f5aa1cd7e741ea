"""Aenigma: letters and digits in hundreds of display fonts."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from archives import AENIGMA, read_members
from pictures import Domain, Picture, by_digest

from domains.drawing import at_size, drawn

FONTS = 100  # of each character
CHARACTERS = string.ascii_uppercase + string.digits


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    members = read_members(paths["fonts"], lambda name: name.endswith(".ttf"), AENIGMA.remedy)
    fonts = {member.rpartition("/")[2].removesuffix(".ttf"): at_size(raw) for member, raw in members.items()}
    for character in names:
        kept = 0
        for font in by_digest(list(fonts), character):
            if (pixels := drawn(character, fonts[font])) is not None:
                yield Picture(f"{font}/{character}", (character, font), pixels)
                kept += 1
            if kept == FONTS:
                break


AENIGMA_DOMAIN = Domain(
    "aenigma", ("class", "font"), {"fonts": AENIGMA}, _pictures, 50, "A to Z and 0 to 9, each in 100 of 465 fonts"
)
