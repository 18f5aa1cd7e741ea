"""A character of any font, in black on white, centred."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from pictures import SIZE
from PIL import Image, ImageDraw, ImageFont, ImageOps

_PIXELS = 96  # height of the font when it is drawn
_FILL = 0.75  # longer side of a character over the side of the image


def drawn(character: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8] | None:
    """``(64, 64, 3)``; None for a font that leaves nothing, for example because it lacks the character."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    ink = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8), 0)
    ImageDraw.Draw(ink).text((4 - left, 4 - top), character, font=font, fill=255)
    if (box := ink.getbbox()) is None:
        return None
    ink = ink.crop(box)
    scale = _FILL * SIZE / max(ink.size)
    width, height = (max(1, round(scale * side)) for side in ink.size)
    canvas = Image.new("L", (SIZE, SIZE), 0)
    canvas.paste(ink.resize((width, height), Image.Resampling.LANCZOS), ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.asarray(ImageOps.invert(canvas).convert("RGB"))


def at_size(content: bytes) -> ImageFont.FreeTypeFont:
    """A font from the bytes of its file, at the size that `drawn` wants."""
    return ImageFont.truetype(io.BytesIO(content), _PIXELS)
