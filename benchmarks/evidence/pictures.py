"""Pictures on their way from a package into the suite: 64 px RGB, with their class and further attributes.

The files in ``domains/`` make them; `arrays` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from archives import Package
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIZE = 64


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        name: unique in its domain; says which file it comes from.
        values: its value of every attribute of the domain, the class first.
        pixels: ``(64, 64, 3)`` uint8.
    """

    name: str
    values: tuple[str, ...]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Domain:
    """How the images of one domain are made.

    Attributes:
        name: of the domain and its file.
        attributes: "class" first.
        packages: what it is made from, by a name that ``pictures`` knows.
        pictures: paths of the archives and names that the splits hold -> the images, in any order.
        least: the fewest images that a class may have.
        about: one line, for the table of the documentation.
    """

    name: str
    attributes: tuple[str, ...]
    packages: Mapping[str, Package]
    pictures: Callable[[Mapping[str, Path], Sequence[str]], Iterator[Picture]]
    least: int
    about: str

    @property
    def licences(self) -> dict[str, str]:
        """Licence of every package."""
        return {package.name: package.licence for package in self.packages.values()}


def by_digest(names: Sequence[str], salt: str = "") -> list[str]:
    """Names in the order of their SHA-256: a shuffle that depends on nothing but the names."""
    return sorted(names, key=lambda name: hashlib.sha256((salt + name).encode()).digest())


def on_white_square(image: Image.Image) -> NDArray[np.uint8]:
    """What is not white, on white, padded to a square, scaled to 64 px."""
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    flat = ground.convert("RGB")
    flat = flat.crop(ImageOps.invert(flat).getbbox())
    side = max(flat.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
