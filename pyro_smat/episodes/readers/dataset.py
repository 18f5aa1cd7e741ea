"""Any torch Dataset of (image, integer label) to an ImagePool."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.decode import MAX_PIXELS, check_form, stack_pixels, to_pixels
from pyro_smat.episodes.readers.duplicates import warn_of_duplicates
from pyro_smat.episodes.readers.label_names import ClassNames, coded, label_names

DARK = 2  # of 255, the largest value of pixels that were scaled twice


class DarkWarning(UserWarning):
    """Images without a value that can be seen."""


def read_dataset(
    dataset: Dataset[Any],
    size: int | None = None,
    channels: int = 3,
    *,
    class_names: ClassNames | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImagePool:
    """Read every item of a dataset, each once, however many episodes are drawn later.

    An image is a PIL image, a uint8 or floating-point tensor ``(C, H, W)`` or ``(H, W)``, or an array ``(H, W, C)`` or
    ``(H, W)``; C is 1, 3 or 4 (RGBA). Floating-point images are in [0, 1]: leave out ``Normalize`` transforms. Images
    are kept in memory: N x channels x H x W bytes.

    Args:
        dataset: yields (image, label); the label is an int, or a tensor or array of one.
        size: side in pixels of the square images that are wanted: the centre is cropped and scaled (bilinear). None
            keeps the items' own size, which must then be the same for all.
        channels: 1 (grey) or 3 (RGB).
        class_names: what labels are called: a list by position, or a mapping from labels to names. None asks the
            dataset.
        max_pixels: of an image; larger ones are refused before they are decoded.

    Returns:
        A pool with the one attribute ``"class"``. Class names are ``class_names``; else what ``dataset.classes`` or
        ``class_to_idx`` say (also those under ``torch.utils.data.Subset`` and, part by part, ``ConcatDataset``: the
        same name is one class); else the labels that occur, as text.

    Raises:
        ValueError: for a DataLoader, an empty dataset, an item that is not such a pair, NaN, infinite or unscaled
            floating-point images, too large ones, labels that are not integers or that ``classes`` does not have, or
            mixed sizes; names the item. For names of classes that are in doubt.

    Warns:
        DuplicateWarning: of images that are there more than once.
        DarkWarning: of images that are all but black, as those that were divided by 255 twice.
    """
    check_form(size, channels)
    if isinstance(dataset, DataLoader):
        raise ValueError(
            "got a DataLoader, whose items are batches; expected the dataset itself, item by item: loader.dataset"
        )
    known = label_names(dataset, class_names)
    labels: list[int] = []
    count = _count(dataset)
    pixels = _items(dataset, count, labels, (size, channels, max_pixels))
    if count is None:
        kept = list(pixels)
        pixels, count = iter(kept), len(kept)
    if count == 0:
        raise ValueError(f"{type(dataset).__name__} is empty; expected at least one (image, label)")
    images = stack_pixels(pixels, count)
    highest = int(images.max())
    if 0 < highest <= DARK:
        warnings.warn(
            f"{type(dataset).__name__}: images have no value above {highest} of 255, so all are but black: divided by "
            "255 twice, or bytes of 0 and 1? Expected uint8 from 0 to 255, or floating point in [0, 1]",
            DarkWarning,
            stacklevel=2,
        )
    codes, names = coded(labels, known)
    warn_of_duplicates(type(dataset).__name__, images, torch.tensor(codes), lambda row: f"item {row}")
    return ImagePool(
        images=images,
        labels=torch.tensor(codes)[:, None],
        attributes=("class",),
        class_names=(names,),
        domain=torch.zeros(count, dtype=torch.long),
    )


def _count(dataset: Any) -> int | None:
    """Its length; None for a stream, of which some have a __len__ that fails."""
    try:
        return len(dataset)
    except TypeError:
        return None


def _items(
    dataset: Any, count: int | None, labels: list[int], form: tuple[int | None, int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of every item; appends the labels."""
    source = iter(dataset) if count is None else (dataset[i] for i in range(count))
    for i, item in enumerate(source):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"item {i} is {_describe(item)}; expected a pair (image, label)")
        labels.append(_label(item[1], i))
        picture = _picture(item[0], i)
        try:
            pixels = to_pixels(picture, *form)
        except (OSError, ValueError) as error:
            raise ValueError(f"item {i}: image cannot be read ({error}); leave it out or mend it") from error
        yield f"item {i}", pixels


def _picture(image: Any, i: int) -> Image.Image:
    if isinstance(image, Image.Image):
        if image.mode != "F":
            return image
        image = np.asarray(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # NumPy has none
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        layout = "(C, H, W)"
    elif isinstance(image, np.ndarray):
        array, layout = image, "(H, W, C)"
    else:
        raise ValueError(f"item {i}: image is {_describe(image)}; expected a PIL image, a tensor or an array")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"item {i}: image is {_describe(image)}; expected {layout} with C of 1, 3 or 4")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"item {i}: image holds NaN or infinite values; expected finite pixels in [0, 1]")
        low, high = array.min(), array.max()
        if low < 0 or high > 1:
            raise ValueError(
                f"item {i}: image is floating point from {low:.4g} to {high:.4g}; expected [0, 1] (divide 0-255 images "
                "by 255, leave out Normalize)"
            )
        array = np.floor(array * 255.0 + 0.5)
    elif array.dtype != np.uint8:
        raise ValueError(f"item {i}: image is {_describe(image)}; expected uint8, or floating point in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _label(label: Any, i: int) -> int:
    value = label.item() if isinstance(label, Tensor | np.ndarray) and np.prod(label.shape) == 1 else label
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"item {i}: label is {_describe(label)}; expected an integer of at least 0")
    return int(value)


def _describe(thing: Any) -> str:
    if isinstance(thing, Tensor | np.ndarray) and len(thing.shape):
        return f"{thing.dtype} {tuple(thing.shape)}"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"{type(thing).__name__} {str(thing)[:60]}"
