"""Image files to pixels: decoding, size and channels. Every reader of folders, tables and datasets goes through here.

Images are decoded once, into memory: N images take N x C x H x W bytes (10,000 RGB images of 84 x 84 px: 212 MB).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pyro_smat.episodes.readers.listing import EXPECTED, describe, image_files, subfolders, warn_of

MAX_PIXELS = 2**26  # of one image, 8192 x 8192: 200 MB when decoded as RGB
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")  # none runs a program


def read_images(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    size: int | None = None,
    channels: int = 3,
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Tensor, list[str]]:
    """Unlabelled images: one file, the files of one folder in the order of their names, or a list of files.

    Args:
        source: a file, a folder, or files.
        size: side in pixels of the square images that are wanted, see :func:`to_pixels`; None keeps their own.
        channels: 1 (grey) or 3 (RGB).
        max_pixels: of an image; larger ones are refused before they are decoded.

    Returns:
        ``(n, channels, H, W)`` float32 in [0, 1], and n names: of files within the folder, or paths as they were given.

    Raises:
        ValueError: for a path that is not there, an empty folder or list, an unreadable or too large image, or mixed
            sizes.

    Warns:
        LeftOutWarning: of the files of a folder that are not read, with the reasons.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            paths, left_out = image_files(path)
            if not paths:
                inside = [p.name for p in subfolders(path)]
                raise ValueError(
                    f"{path} has no images of its own{f', only folders {inside[:8]}' if inside else ''}; "
                    f"expected {EXPECTED}" + (f" ({describe(left_out)})" if left_out else "")
                )
            warn_of(path, left_out)
            names = [p.name for p in paths]
        else:
            paths, names = [path], [str(source)]
    else:
        paths, names = [Path(p) for p in source], [str(p) for p in source]
        if not paths:
            raise ValueError("got an empty list of image files; expected at least one")
    return decode_files(paths, size, channels, max_pixels).float() / 255.0, names


def decode_files(paths: Sequence[Path], size: int | None, channels: int, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode files, several at a time, into ``(n, channels, H, W)`` uint8.

    Raises:
        ValueError: for a file that is missing, unreadable or too large, or for mixed sizes; names the file.
    """
    check_form(size, channels)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: decode_image(path, size, channels, max_pixels), paths)
        return stack_pixels(zip(map(str, paths), decoded, strict=True), len(paths))


def stack_pixels(named: Iterable[tuple[str, np.ndarray]], count: int) -> Tensor:
    """``count`` (name, ``(C, H, W)`` uint8) as one ``(count, C, H, W)`` tensor.

    Raises:
        ValueError: when two sizes differ; names one image of each.
    """
    stacked, first = np.empty(0, dtype=np.uint8), ""
    for i, (name, pixels) in enumerate(named):
        if i == 0:
            stacked, first = np.empty((count, *pixels.shape), dtype=np.uint8), name
        if pixels.shape != stacked.shape[1:]:
            raise ValueError(
                f"images have different sizes: {first} is {_extent(stacked[0])} and {name} is {_extent(pixels)} "
                "pixels; expected one size (pass size=... to resize all)"
            )
        stacked[i] = pixels
    return torch.from_numpy(stacked)


def decode_image(
    source: Path | bytes, size: int | None, channels: int, max_pixels: int = MAX_PIXELS, *, name: str = ""
) -> np.ndarray:
    """One image file, or the bytes of one, as ``(channels, H, W)`` uint8; arguments as in :func:`read_images`.

    Raises:
        ValueError: for a file that is missing, unreadable or too large; calls it by its ``name``, or by its path.
    """
    called = name or (source if isinstance(source, Path) else "the image")
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"{called} is not there; expected an image file")
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source), formats=_formats()) as image:
            return to_pixels(image, size, channels, max_pixels)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ValueError(f"{called} cannot be read as an image ({error}); replace or remove the file") from error


def to_pixels(image: Image.Image, size: int | None, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An opened image as ``(channels, H, W)`` uint8.

    Transparency is laid on white, EXIF rotation applied, 16 bits scaled to 8, CMYK converted to RGB, and of an
    animation or of several pages the first taken. With ``size`` the longer side is cropped around the centre and the
    square scaled to size x size pixels (bilinear, with antialiasing).

    Raises:
        ValueError: for more than ``max_pixels`` pixels, before they are decoded; for floating-point pixels, of which
            nobody says the range, or integers of more than 16 bits.
    """
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"it has {image.width} x {image.height} = {image.width * image.height:,} pixels; expected at most "
            f"{max_pixels:,}, make it smaller or raise max_pixels"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating point, of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def check_form(size: int | None, channels: int) -> None:
    """Refuse a size below 1 and channels other than 1 or 3."""
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(
            f"size is {size!r}; expected a number of pixels of at least 1, or None for the images' own size"
        )
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; expected 1 (grey) or 3 (RGB)")


@cache
def _formats() -> tuple[str, ...]:
    """What this Pillow can read of them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers of 16 bits as 8, rounded; what Pillow opens with 32 bits is of 8 or 16 by its largest value."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels range from {low} to {high}; expected 8 or 16 bits, from 0 to 255 or 65535")
    if image.mode.startswith("I;16") or high > 255:
        values = (values + 128) // 257
    return Image.fromarray(values.astype(np.uint8))


def _extent(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]} x {pixels.shape[1]}"
