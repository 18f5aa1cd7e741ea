"""Images as people bring them: arrays, tensors, PIL images and lists of these become ``(n, C, H, W)`` float in [0, 1].

Every image is brought to one size by itself, as the readers of training's files do it, so that what a network sees of
it depends neither on what holds it nor on what else is in the list. :meth:`RoutedClassifier.adapt` and the methods of
:class:`AdaptedTask` read their images here; what cannot be meant is refused, and what is unlike the router's training
images is warned of. Labels are read in ``support_labels.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.episodes.readers.decode import to_pixels

EXPECTED = (
    "expected (n, channels, height, width) or (n, height, width, channels) with 1 or 3 channels, uint8 or floating "
    "point in [0, 1], or a list of such images or PIL images"
)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's
OVERSHOOT = 0.15  # what interpolation may leave outside [0, 1]
FAR = 1.5  # sizes and aspects that differ by this factor from the training images' are warned of
_CHANNELS = (1, 3)


class InputWarning(UserWarning):
    """Images that are usable but unlike those that the router was trained on."""


@dataclass(frozen=True)
class ImageForm:
    """What a router's images are like.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: side of the training images in pixels, which all images are brought to.
        pixels: of the training images; None where unknown.
        normalises: whether the network has a :class:`~pyro_smat.networks.Preprocessing` that normalises its images.
    """

    channels: int
    size: int
    pixels: PixelStatistics | None = None
    normalises: bool = False


def read_images(images: Any, form: ImageForm, *, like: tuple[int, int] | None = None) -> Tensor:
    """``(n, C, H, W)`` float32 in [0, 1] of whatever holds n images.

    Three channels become one by their luma ``.299 R + .587 G + .114 B``, one becomes three equal ones. Every image is
    cropped to its central square and scaled to ``form.size`` (bilinear, antialiased), by itself and as the readers of
    files do it (:func:`~pyro_smat.episodes.readers.decode.to_pixels`; equal up to rounding to 8 bits). PIL images are
    also treated as these do with transparency (on white), rotation (EXIF) and 16 bits.

    Args:
        images: a tensor or array ``(n, C, H, W)``, ``(n, H, W, C)`` or, grey, ``(n, H, W)``, uint8, bool or floating
            point in [0, 1]; a PIL image; or a list of PIL images, tensors and arrays, ``(C, H, W)``, ``(H, W, C)`` or
            ``(H, W)`` each.
        form: of the router's images.
        like: (height, width) to bring images to instead, from the largest central part of that aspect.

    Raises:
        ValueError: for anything else: no images, other channels, values outside [0, 1], NaN; says what was found.

    Warns:
        InputWarning: of sizes far from ``form.size`` (or ``like``), but of PIL images that are larger, as photos are;
            of images of which more than a third is cropped; of values that look scaled twice or inverted.

    Example:
        >>> import numpy as np
        >>> tuple(read_images(np.full((2, 8, 8, 3), 90, np.uint8), ImageForm(channels=1, size=8)).shape)
        (2, 1, 8, 8)
    """
    if isinstance(images, Image.Image):
        images = [images]
    known = (form.size, form.size) if like is None else like
    whose = "router was trained on" if like is None else "support has"
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype != object):
        pixels = _channels(_batch(_values(images, "images"), isinstance(images, Tensor)), form.channels)
        _check_values(pixels, "images", form)
        _warn_of_size("images are", pixels.shape[-2:], known, whose)
        pixels = _fitted(pixels.clamp(0.0, 1.0), known)
    else:
        pixels = _from_list(_listed(images), form, known, whose)
    if form.pixels is not None:
        _warn_of_values(pixels, form.pixels)
    return pixels


def _listed(images: Any) -> list[Any]:
    if isinstance(images, str | bytes | bytearray | Mapping | Set) or not isinstance(images, Iterable):
        raise ValueError(f"images is a {type(images).__name__}, {images!r:.60}; {EXPECTED}")
    try:
        found = list(images)
    except Exception as error:  # an iterator of a person's own
        raise ValueError(f"images cannot be listed ({type(error).__name__}: {error}); {EXPECTED}") from error
    if not found:
        raise ValueError(f"images are an empty {type(images).__name__}; {EXPECTED}")
    return found


def _from_list(images: Sequence[Any], form: ImageForm, known: tuple[int, int], whose: str) -> Tensor:
    """Each by itself; of those that are far from the known size the first is warned of."""
    fitted, warned = [], False
    for i, image in enumerate(images):
        name, photo = f"images[{i}]", isinstance(image, Image.Image)
        pixels = _decoded(image, name, form, known) if photo else _one(image, name, form)
        _check_values(pixels, name, form)
        extent = (image.height, image.width) if photo else pixels.shape[-2:]
        warned = warned or _warn_of_size(f"{name} is", extent, known, whose, may_be_larger=photo)
        fitted.append(_fitted(pixels.clamp(0.0, 1.0), known))
    return torch.cat(fitted)


def _decoded(image: Image.Image, name: str, form: ImageForm, known: tuple[int, int]) -> Tensor:
    """``(1, C, H, W)`` of a PIL image, by the readers' own code where that gives the size."""
    try:
        pixels = to_pixels(image, known[0] if known[0] == known[1] else None, form.channels)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ValueError(f"{name} cannot be read ({error}); expected an image with pixels") from error
    return torch.from_numpy(np.array(pixels)).float().unsqueeze(0) / 255.0


def _one(image: Any, name: str, form: ImageForm) -> Tensor:
    """``(1, C, H, W)`` of a tensor or array."""
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(
            f"{name} is a {type(image).__name__}, {image!r:.60}; expected a PIL image, a tensor or an array"
        )
    values = _values(image, name).cpu()
    if values.ndim == 2:
        values = values.unsqueeze(0)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; expected (channels, height, width), (height, width, channels) or "
            "(height, width)"
        )
    return _channels(_first(values.unsqueeze(0), name, isinstance(image, Tensor)), form.channels)


def _values(images: Tensor | np.ndarray, name: str) -> Tensor:
    """Float32 in the range that was given, 8 bits divided by 255."""
    if isinstance(images, np.ndarray):
        if np.ma.isMaskedArray(images) and np.ma.is_masked(images):
            raise ValueError(f"{name} has masked pixels; expected one value for each (fill them in)")
        if images.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {images.dtype}; expected uint8 in 0..255 or floating point in [0, 1]")
        if images.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                images = images.astype(np.float32)
        elif images.dtype.kind in "iu" and images.dtype != np.uint8:
            raise ValueError(_other_integers(name, images.dtype))
        return _values(torch.from_numpy(np.array(images)), name)
    if images.is_meta or images.layout != torch.strided or images.is_quantized:
        raise ValueError(
            f"{name} is a tensor without plain values (device {images.device}, layout {images.layout}); {EXPECTED}"
        )
    images = images.detach()
    images = images.clone() if images.is_inference() else images  # which autograd would refuse
    if images.dtype == torch.uint8:
        if images.numel() and int(images.max()) <= 1:
            warnings.warn(
                f"{name}: uint8 with no value above {int(images.max())}, so all but black; expected 0 to 255",
                InputWarning,
                stacklevel=3,
            )
        return images.float() / 255.0
    if images.dtype == torch.bool or images.is_floating_point():
        return images.float()
    raise ValueError(_other_integers(name, images.dtype))


def _other_integers(name: str, dtype: Any) -> str:
    return f"{name} holds {dtype}, of unknown range; expected uint8 in 0..255 or floating point in [0, 1]"


def _batch(images: Tensor, conventional: bool) -> Tensor:
    """``(n, C, H, W)`` of n images with their channels anywhere."""
    if images.ndim == 3 and 0 not in images.shape:
        if images.shape[0] in _CHANNELS or images.shape[2] in _CHANNELS:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, one image with channels or several grey ones; expected four "
                "dimensions: images[None] for one image, images[:, None] for grey ones"
            )
        return images.unsqueeze(1)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}; {EXPECTED}")
    return _first(images, "images", conventional)


def _first(images: Tensor, name: str, conventional: bool) -> Tensor:
    """Channels to the front; where both ends may be channels they are in front in a tensor, and unknown in an array."""
    shape = tuple(images.shape) if name == "images" else tuple(images.shape[1:])
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first and last and not conventional:
        raise ValueError(f"{name} has shape {shape}: channels may be first or last; expected a tensor, channels first")
    if not first and not last:
        alpha = 2 in (images.shape[1], images.shape[3]) or 4 in (images.shape[1], images.shape[3])
        raise ValueError(
            f"{name} has shape {shape}, without 1 or 3 channels first or last"
            + ("; leave an alpha channel out" if alpha else "")
            + f"; {EXPECTED}"
        )
    return images if first else images.movedim(3, 1)


def _channels(images: Tensor, wanted: int) -> Tensor:
    if images.shape[1] == wanted:
        return images
    if wanted == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(LUMA).view(-1, 1, 1)).sum(1, keepdim=True)


def _central(extent: tuple[int, int], like: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the largest part of an extent that has the aspect of another."""
    (height, width), (like_height, like_width) = extent, like
    return (
        max(1, min(height, round(width * like_height / like_width))),
        max(1, min(width, round(height * like_width / like_height))),
    )


def _fitted(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The central parts of ``(n, C, H, W)`` that have the aspect of a size, scaled to it."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    inner = _central((height, width), size)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    images = images[..., top : top + inner[0], left : left + inner[1]]
    return images if inner == size else F.interpolate(images, size, mode="bilinear", antialias=True)


def _check_values(images: Tensor, name: str, form: ImageForm) -> None:
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        rows = f" {bad.nonzero().flatten().tolist()[:8]}" if name == "images" else ""
        raise ValueError(f"{name}{rows} hold NaN or infinite values; expected finite pixels in [0, 1]")
    low, high = (float(end) for end in images.aminmax())
    if low < -OVERSHOOT:
        hint = "they look normalised already: undo it, " + (
            "the network does that itself"
            if form.normalises
            else "and where the network was trained on normalised images, have it do that itself: "
            "Preprocessing(mean, std).attach(network) before the router is made"
        )
    elif high > 2.0:
        hint = "divide by 255, or pass uint8"
    else:
        hint = "scale or clip them"
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"{name} range from {low:.4g} to {high:.4g}; expected pixels in [0, 1]: {hint}")


def _warn_of_size(
    subject: str, extent: Sequence[int], known: tuple[int, int], whose: str, *, may_be_larger: bool = False
) -> bool:
    """Whether there was a reason to warn: an image far larger or smaller, or one that loses much by cropping."""
    height, width = extent
    inner = _central((height, width), known)
    scale, lost = inner[0] / known[0], max(height / inner[0], width / inner[1])
    found, expected = f"{subject} {height} x {width} pixels", f"the {known[0]} x {known[1]} that this {whose}"
    if scale < 1 / FAR or (scale > FAR and not may_be_larger):
        warnings.warn(f"{found}, far from {expected}; expected about that size", InputWarning, stacklevel=4)
    if lost > FAR:
        warnings.warn(
            f"{found}, of another aspect than {expected}: the central {inner[0]} x {inner[1]} is used and the rest "
            "left out; expected about that aspect: crop or pad what matters into it",
            InputWarning,
            stacklevel=4,
        )
    return scale < 1 / FAR or (scale > FAR and not may_be_larger) or lost > FAR


def _warn_of_values(images: Tensor, known: PixelStatistics) -> None:
    """Compares the mean with training's, by how much the means of training images differ among themselves."""
    mean, spread = float(images.mean()), max(known.image_std, 0.02)
    expected = f"the training images have mean {known.mean:.3f} and standard deviation {known.std:.3f}"
    highest = float(images.max())
    if 0 < highest <= 2 / 255 < known.mean:
        warnings.warn(
            f"images range from 0 to {highest:.2g}, as if divided by 255 twice; {expected}", InputWarning, stacklevel=4
        )
    elif abs(mean - known.mean) > 3 * spread and abs(1 - mean - known.mean) < 2 * spread:
        warnings.warn(
            f"images have mean {mean:.3f}, as if inverted (1 - pixel); {expected}", InputWarning, stacklevel=4
        )
