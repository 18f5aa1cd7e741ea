"""Images as people bring them: arrays, tensors, PIL images and lists of these become ``(n, C, H, W)`` float in [0, 1].

:meth:`RoutedClassifier.adapt` and the methods of :class:`AdaptedTask` read their images here; what cannot be meant is
refused, and what is unlike the router's training images is warned of. Labels are read in ``support_labels.py``.
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
FAR = 1.5  # sizes that differ by this factor from the training images' are warned of
_CHANNELS = (1, 3)


class InputWarning(UserWarning):
    """Images that are usable but unlike those that the router was trained on."""


@dataclass(frozen=True)
class ImageForm:
    """What a router's images are like.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: side of the training images in pixels; images of mixed sizes and PIL images are brought to it.
        resizes: whether the network resizes its images itself, so that their size does not matter.
        pixels: of the training images; None where unknown.
    """

    channels: int
    size: int
    resizes: bool = False
    pixels: PixelStatistics | None = None


def read_images(images: Any, form: ImageForm, *, like: tuple[int, int] | None = None) -> Tensor:
    """``(n, C, H, W)`` float32 in [0, 1] of whatever holds n images.

    Three channels become one by their luma ``.299 R + .587 G + .114 B``, one becomes three equal ones. Images of mixed
    sizes and PIL images are cropped to their central square and scaled to ``form.size`` (bilinear, antialiased), as the
    readers of files do; PIL images also as these do with transparency (on white), rotation (EXIF) and 16 bits.

    Args:
        images: a tensor or array ``(n, C, H, W)``, ``(n, H, W, C)`` or, grey, ``(n, H, W)``, uint8, bool or floating
            point in [0, 1]; a PIL image; or a list of PIL images, tensors and arrays, ``(C, H, W)``, ``(H, W, C)`` or
            ``(H, W)`` each.
        form: of the router's images.
        like: (height, width) that images of another size are scaled to; None keeps theirs.

    Raises:
        ValueError: for anything else: no images, other channels, values outside [0, 1], NaN; says what was found.

    Warns:
        InputWarning: of sizes far from ``form.size`` (or ``like``), and of values that look scaled twice or inverted.

    Example:
        >>> import numpy as np
        >>> tuple(read_images(np.full((2, 8, 8, 3), 90, np.uint8), ImageForm(channels=1, size=8)).shape)
        (2, 1, 8, 8)
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype != object):
        pixels = _channels(_batch(_values(images, "images"), isinstance(images, Tensor)), form.channels)
    else:
        pixels = _from_list(_listed(images), form)
    _check_values(pixels)
    pixels = pixels.clamp(0.0, 1.0)
    known = (form.size, form.size) if like is None else like
    if not (form.resizes and like is None):
        _warn_of_size(pixels, known, "router was trained on" if like is None else "support has")
    if like is not None and tuple(pixels.shape[-2:]) != like:
        pixels = F.interpolate(pixels, like, mode="bilinear", antialias=True)
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


def _from_list(images: Sequence[Any], form: ImageForm) -> Tensor:
    made = [_one(image, f"images[{i}]", form) for i, image in enumerate(images)]
    if len({tuple(image.shape) for image in made}) > 1:
        made = [_square(image, form.size) for image in made]
    return torch.stack(made)


def _one(image: Any, name: str, form: ImageForm) -> Tensor:
    """``(C, H, W)`` of one image."""
    if isinstance(image, Image.Image):
        try:
            pixels = to_pixels(image, form.size, form.channels)
        except Exception as error:  # decoders of damaged files raise almost anything
            raise ValueError(f"{name} cannot be read ({error}); expected an image with pixels") from error
        return torch.from_numpy(np.array(pixels)).float() / 255.0
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
    return _channels(_first(values.unsqueeze(0), name, isinstance(image, Tensor)), form.channels)[0]


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


def _square(image: Tensor, size: int) -> Tensor:
    """The central square of ``(C, H, W)``, scaled."""
    side = min(image.shape[1:])
    top, left = ((extent - side) // 2 for extent in image.shape[1:])
    square = image[:, top : top + side, left : left + side].unsqueeze(0)
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0]


def _check_values(images: Tensor) -> None:
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise ValueError(f"images {rows[:8]} hold NaN or infinite values; expected finite pixels in [0, 1]")
    low, high = (float(end) for end in images.aminmax())
    if low < -OVERSHOOT:
        hint = "they look normalised already: undo it, the network does that itself"
    elif high > 2.0:
        hint = "divide by 255, or pass uint8"
    else:
        hint = "scale or clip them"
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"images range from {low:.4g} to {high:.4g}; expected pixels in [0, 1]: {hint}")


def _warn_of_size(images: Tensor, known: tuple[int, int], whose: str) -> None:
    height, width = images.shape[-2:]
    ratio = (height * width / (known[0] * known[1])) ** 0.5
    if not 1 / FAR < ratio < FAR:
        warnings.warn(
            f"images are {height} x {width} pixels, far from the {known[0]} x {known[1]} that this {whose}; expected "
            "about that size",
            InputWarning,
            stacklevel=4,
        )


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
