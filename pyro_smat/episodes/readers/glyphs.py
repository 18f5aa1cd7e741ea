"""Glyphs: the built-in world of images, drawn from the letters of the font that matplotlib ships, no download.

Every image is one letter in one face, turned by one angle, in one style of ground and ink; a pool is the full cross
product of these four attributes, with a small seeded jitter of place and size. Any attribute can therefore be the label
of an episode while the others vary, and any two can be confounded. Pools feed the episode sampler.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.array_cache import cache_folder, read_cached, write_cached

GlyphSplit = Literal["train", "validation", "test", "ood"]
ATTRIBUTES = ("letter", "face", "rotation", "style")

FACES = ("hairline", "regular", "black", "hollow", "contrast", "fading", "shadow")
ROTATIONS = (-39, -26, -13, 0, 13, 26, 39)  # degrees, counter-clockwise; 7 x 13 = 91: no wrap for square letters
STYLES = ("paper", "inverse", "dim", "stripes", "checker", "gradient", "noise")

# Letters that differ clearly in outline, also when one of them is turned by up to 78 degrees (the largest difference of
# two rotations): Latin A, Greek Alpha and Cyrillic A are one letter here, and so are o and O. "train", "validation" and
# "test" share three alphabets, "ood" has alphabets of its own.
LETTERS: dict[str, str] = {
    "train": "FNRYfkÆÞßðƣƧƩƪƸɁɅɐɤɥɩɮʇʍʗʞʭͰΨβλμπϛϠϻЂЖУЦЪЮдмчьєћѤѩѮѻѾҠӋԀԄԇԔԖԗᴖᴝẞỺỻꙕꙢꙥꜶꜷꜸꜹꝆꞃ",
    "validation": "grƢƦǶͶξϡпяѠѬѴѹҼᴗⱷꜣꜨꟽ",
    "test": "GHKTWƆƜƷɹʉʕʖΞαϞϺЉЋЫлфђѦѪѰҩԂԏԙꙍꙦꜦꞀꟼ",
    "ood": "ԽՄՅՊղմշչպտאטלעפקתႬႰႱႾელფღჯⴿⵃⵅⵇⵋⵎⵜⵞ",
}

_FONT = "DejaVuSans.ttf"  # among matplotlib's own fonts, the one with the most alphabets
_VERSION = 1  # of the drawing code; raise it when the same letters come out differently
_OVERSAMPLING = 4  # outlines are drawn at this many times the image size
_FILL = 0.66  # longer side of a letter over the side of the image


def glyph_pool(split: str, size: int = 32, cache_dir: str | Path | None = None) -> ImagePool:
    """The glyph images of one split, rendered once and cached as one ``.npz`` file.

    The splits share faces, rotations and styles; letters are new in each split, and "ood" has other alphabets.

    Args:
        split: "train", "validation", "test" (Latin, Greek and Cyrillic letters) or "ood" (other alphabets).
        size: side of the square images in pixels, at least 16.
        cache_dir: folder of the cached file; by default ``$XDG_CACHE_HOME/pyro-smat`` or ``~/.cache/pyro-smat``.

    Returns:
        A pool of L x 7 x 7 x 7 single-channel images with the attributes "letter", "face", "rotation" and "style";
        letters are named by alphabet, for example "greek:small-xi".

    Raises:
        ValueError: for an unknown split or a size below 16.

    Example:
        >>> glyph_pool("validation")
        ImagePool(6860 images 1x32x32, letter: 20 classes, face: 7 classes, rotation: 7 classes, style: 7 classes)
    """
    if split not in get_args(GlyphSplit):
        raise ValueError(f"split is {split!r}; expected one of {get_args(GlyphSplit)}")
    if size < 16:
        raise ValueError(f"size is {size} pixels; expected at least 16, smaller letters cannot be told apart")
    letters = LETTERS[split]
    path = _cache_path(split, size, cache_dir)
    images = read_cached(path, (len(letters) * _cells(), 1, size, size))
    if images is None:
        images = np.concatenate([_draw_letter(letter, size) for letter in letters])
        write_cached(path, images)
    counts = (len(letters), len(FACES), len(ROTATIONS), len(STYLES))
    return ImagePool(
        images=torch.from_numpy(images),
        labels=torch.cartesian_prod(*(torch.arange(n) for n in counts)),
        attributes=ATTRIBUTES,
        class_names=(tuple(map(letter_name, letters)), FACES, tuple(f"{angle:+d}" for angle in ROTATIONS), STYLES),
        domain=torch.zeros(len(images), dtype=torch.long),
    )


def letter_name(letter: str) -> str:
    """Alphabet and name of a letter from its Unicode name, for example "greek:small-xi" for ξ."""
    alphabet, *rest = unicodedata.name(letter).lower().replace(" letter", "").split()
    return f"{alphabet}:{'-'.join(rest)}"


def letter_outline(letter: str, side: int) -> NDArray[np.float32]:
    """Signed distance to the outline of a letter, ``(side, side)`` in pixels, positive inside.

    The letter (DejaVu Sans) is centred and its longer side is ``0.66 * side``.
    """
    from scipy.ndimage import distance_transform_edt  # not to read a pool that was drawn before

    font = _font(3 * side)
    left, top, right, bottom = font.getbbox(letter)
    drawing = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(drawing).text((-left, -top), letter, font=font, fill=255)
    box = drawing.getbbox()
    if box is None:
        raise ValueError(f"letter {letter!r} has no ink in {_FONT}; expected a letter that the font can draw")
    drawing = drawing.crop(box)
    scale = _FILL * side / max(drawing.size)
    width, height = (max(1, round(scale * length)) for length in drawing.size)
    canvas = Image.new("L", (side, side), 0)
    canvas.paste(drawing.resize((width, height), Image.Resampling.BOX), ((side - width) // 2, (side - height) // 2))
    inside = np.asarray(canvas) > 127
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return (distance - np.sign(distance) * 0.5).astype(np.float32)


def _cells() -> int:
    return len(FACES) * len(ROTATIONS) * len(STYLES)


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # not to read a pool that was drawn before

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FONT, pixels)


def _draw_letter(letter: str, size: int) -> NDArray[np.uint8]:
    """All images of one letter, ``(faces * rotations * styles, 1, size, size)``."""
    generator = np.random.default_rng([_VERSION, size, ord(letter)])
    masks = torch.from_numpy(_draw_faces(letter_outline(letter, _OVERSAMPLING * size), size))
    ink = _place(masks, size, generator).numpy()  # (faces, rotations, styles, size, size)
    images = np.stack([_paint(style, ink[:, :, k], generator) for k, style in enumerate(STYLES)], axis=2)
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8).reshape(-1, 1, size, size)


def _draw_faces(distance: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Coverage of the ink in every face, ``(faces, 2 size, 2 size)``, from the signed distance to the outline.

    Stroke widths are in units of the final pixel at size 32, so that a face looks alike in wide and in narrow letters.
    """
    unit = distance.shape[0] / 32
    stroke = 2 * np.quantile(distance[_ridge(distance)], 0.5)  # typical width of the letter's own strokes

    def weight(width: float) -> NDArray[np.float32]:
        return distance + (width * unit - stroke) / 2

    def cover(signed: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip(signed + 0.5, 0, 1)

    def shift(field: NDArray[np.float32], right: float, down: float) -> NDArray[np.float32]:
        return np.roll(field, (round(down * unit), round(right * unit)), axis=(0, 1))

    ring = cover(weight(4.6)) - cover(weight(2.0))
    fine = np.maximum(weight(1.1), distance - 0.6 * stroke / 2)
    smear = cover(fine)
    for step in np.arange(-1.8, 1.81, 0.2):
        smear = np.maximum(smear, cover(shift(fine, step, 0)))
    fade = np.clip(1.25 - np.arange(distance.shape[0])[:, None] / unit / 24, 0.25, 1)
    solid = cover(weight(1.6))
    for step in np.arange(0, 3.41, 0.2):
        solid = np.maximum(solid, 0.5 * cover(shift(weight(1.6), step, step)))
    faces = {
        "hairline": cover(fine),
        "regular": cover(weight(2.8)),
        "black": cover(weight(5.0)),
        "hollow": ring,
        "contrast": smear,
        "fading": cover(weight(3.6)) * fade,
        "shadow": solid,
    }
    stack = np.stack([faces[name] for name in FACES]).astype(np.float32)
    half = 2 * size
    return stack.reshape(len(FACES), half, -1, half, stack.shape[-1] // half).mean((2, 4))


def _ridge(distance: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Middle lines of the strokes: inside points where the distance has a local maximum along a row or a column."""
    inner = distance[1:-1, 1:-1]
    row = (inner >= distance[1:-1, 2:]) & (inner >= distance[1:-1, :-2])
    column = (inner >= distance[2:, 1:-1]) & (inner >= distance[:-2, 1:-1])
    return np.pad((inner > 1) & row & column, 1)


def _place(masks: Tensor, size: int, generator: np.random.Generator) -> Tensor:
    """Turn and jitter masks ``(faces, 2 size, 2 size)`` into ink ``(faces, rotations, styles, size, size)``."""
    shape = (len(FACES), len(ROTATIONS), len(STYLES))
    angle = np.deg2rad(np.asarray(ROTATIONS, dtype=np.float32))[None, :, None] + generator.uniform(-0.02, 0.02, shape)
    zoom = 1 / generator.uniform(0.93, 1.05, shape)
    offset = generator.uniform(-1.2, 1.2, (2, *shape)) * 2 / 32  # in half sides
    cosine, sine, right, down = (
        torch.from_numpy(field.astype(np.float32)).view(-1, 1, 1)
        for field in (zoom * np.cos(angle), zoom * np.sin(angle), offset[0], offset[1])
    )
    x = (torch.arange(2 * size) + 0.5) / size - 1
    y = x[:, None]
    grid = torch.stack([cosine * x - (sine * y - right), sine * x + (cosine * y + down)], -1)
    copies = masks[:, None, None, None].expand(*shape, 1, -1, -1).flatten(0, 2)
    turned = F.grid_sample(copies, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(turned, 2).view(*shape, size, size)


def _paint(style: str, ink: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Images in [0, 1] of ink coverage ``(*b, size, size)`` in one style; patterns have a random phase each."""
    size = ink.shape[-1]
    phase = generator.uniform(0, 1, (2, *ink.shape[:-2], 1, 1)).astype(np.float32)
    across = np.arange(size, dtype=np.float32) / size
    down = across[:, None]
    colour = np.float32(0.0)
    if style == "paper":
        ground = np.ones_like(ink)
    elif style == "inverse":
        ground, colour = np.zeros_like(ink), np.float32(1)
    elif style == "dim":
        ground, colour = np.full_like(ink, 0.4), np.float32(1)
    elif style == "stripes":
        ground = np.where((8 * down + phase[0]) % 1 < 0.5, 0.65, 1.0) + 0 * ink
    elif style == "checker":
        ground = np.where(((4 * down + phase[0]) % 1 < 0.5) ^ ((4 * across + phase[1]) % 1 < 0.5), 0.65, 1.0) + 0 * ink
    elif style == "gradient":
        ground = 0.5 + 0.5 * across + 0 * ink
    elif style == "noise":
        ground = generator.uniform(0.4, 1.0, ink.shape).astype(np.float32)
    else:
        raise ValueError(f"style is {style!r}; expected one of {STYLES}")
    return ground * (1 - ink) + colour * ink


def _cache_path(split: str, size: int, cache_dir: str | Path | None) -> Path:
    recipe = json.dumps([_VERSION, LETTERS[split], FACES, ROTATIONS, STYLES])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:10]
    return Path(cache_dir or cache_folder()) / f"glyphs-{split}-{size}px-v{_VERSION}-{key}.npz"
