"""Emoji: sub-categories as classes, each emoji drawn by three vendors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from archives import EMOJI
from emoji_vendors import drawings, on_white
from pictures import Domain, Picture


def _pictures(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    drawn, members = drawings(paths)
    for subcategory in names:
        for code in members.get(subcategory, ()):
            for vendor, images in drawn.items():
                pixels = np.asarray(on_white(images[code], f"{paths[vendor]}: image {code}", vendor))
                yield Picture(f"{vendor}/{code}", (subcategory, vendor), pixels)


EMOJI_DOMAIN = Domain(
    "emoji", ("class", "vendor"), EMOJI, _pictures, 36, "sub-categories of emojis, drawn by three vendors"
)
