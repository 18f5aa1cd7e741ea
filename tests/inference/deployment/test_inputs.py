"""What people bring as images: every form gives the pixels that it shows, or a ValueError that begins with the name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from tiny_run import tiny_config, tiny_router

from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.episodes.readers.decode import to_pixels
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.inputs import ImageForm, InputWarning, read_images

GREY, RGB = ImageForm(channels=1, size=8), ImageForm(channels=3, size=8)
BYTES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
FIRST = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).copy()).float() / 255.0
LABELS = [0, 1, 0, 1]


@pytest.mark.parametrize(
    "images",
    [
        BYTES,
        BYTES.transpose(0, 3, 1, 2),
        torch.from_numpy(BYTES),
        torch.from_numpy(BYTES).movedim(-1, 1),
        BYTES / 255.0,
        (BYTES / 255.0).astype(">f8"),
        FIRST.double().requires_grad_(),
        list(BYTES),
        [torch.from_numpy(image) for image in BYTES],
        [Image.fromarray(image) for image in BYTES],
        tuple(Image.fromarray(image) if i % 2 else image / 255.0 for i, image in enumerate(BYTES)),
        np.array([*(Image.fromarray(image) for image in BYTES), None], dtype=object)[:-1],
        (image for image in BYTES),
    ],
    ids=lambda images: type(images).__name__,
)
def test_every_form_gives_the_same_pixels(images: Any) -> None:
    made = read_images(images, RGB)
    torch.testing.assert_close(made, FIRST, atol=1e-6, rtol=0)
    assert made.dtype == torch.float32
    assert not made.requires_grad


def test_grey_and_rgb_by_pillows_rule() -> None:
    """Luma is what Pillow's "L" gives, up to its rounding to 8 bits; grey is three equal channels."""
    pillow = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in BYTES]) / 255.0
    made = read_images(BYTES, GREY)
    assert np.abs(made[:, 0].numpy() - pillow).max() <= 1.01 / 255
    back = read_images(made, RGB)
    assert torch.equal(back, made.expand(-1, 3, -1, -1))
    assert torch.equal(read_images(made[:, 0], GREY), made)  # (n, H, W) is grey


EXTENTS = ((20, 20), (20, 29), (29, 20), (9, 8), (8, 8), (6, 7))
SMOOTH = [
    np.stack([np.outer(np.linspace(0, 255, h), np.linspace(low, 1, w)) for low in (0.2, 0.5, 0.8)], -1).astype(np.uint8)
    for h, w in EXTENTS
]


@pytest.mark.filterwarnings("ignore::pyro_smat.inference.deployment.inputs.InputWarning")
@pytest.mark.parametrize("like", [None, (12, 12)])
def test_an_image_is_seen_as_the_readers_see_its_file(like: tuple[int, int] | None) -> None:
    """Whatever holds it, and whatever else is in the list."""
    size = RGB.size if like is None else like[0]
    for array in SMOOTH:
        photo = Image.fromarray(array)
        file = torch.from_numpy(to_pixels(photo, size, 3).copy()).float() / 255.0
        forms = [
            [photo],
            [array],
            array[None],
            array[None] / 255.0,
            torch.from_numpy(array).movedim(-1, 0).unsqueeze(0),
        ]
        for form in forms:
            torch.testing.assert_close(read_images(form, RGB, like=like)[0], file, atol=2 / 255, rtol=0)
    together = read_images(SMOOTH, RGB, like=like)
    for i, array in enumerate(SMOOTH):
        assert torch.equal(together[i], read_images(array[None], RGB, like=like)[0])
        assert torch.equal(together[i], read_images([array, SMOOTH[1]], RGB, like=like)[0])


@pytest.mark.filterwarnings("ignore::pyro_smat.inference.deployment.inputs.InputWarning")
def test_queries_of_a_support_that_is_not_square_keep_its_aspect() -> None:
    """The largest central part of the support's aspect, scaled: 6 x 8 of a 9 x 8 image."""
    image = torch.rand(1, 1, 9, 8)
    made = read_images(image, GREY, like=(12, 16))
    expected = torch.nn.functional.interpolate(image[..., 1:7, :], (12, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(made, expected)
    photo = Image.fromarray((image[0, 0].numpy() * 255).round().astype(np.uint8))
    torch.testing.assert_close(read_images([photo], GREY, like=(12, 16)), made, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (255 * FIRST, r"range from 0 to 255; expected pixels in \[0, 1\]: divide by 255"),
        (2 * FIRST - 1, r"range from -1 to 1; .* normalised already"),
        (1.4 * FIRST, "scale or clip"),
        (FIRST.index_fill(0, torch.tensor(2), torch.nan), r"images \[2\] hold NaN"),
        (torch.from_numpy(BYTES).long(), "torch.int64, of unknown range"),
        (BYTES.astype(np.uint16), "uint16, of unknown range"),
        (BYTES.astype(np.complex64), "complex64"),
        (np.ma.masked_less(BYTES, 9), "masked pixels"),
        (torch.rand(4, 4, 8, 8), "leave an alpha channel out"),
        (np.zeros((3, 3, 8, 3)), "channels may be first or last"),
        (torch.rand(3, 8, 8), r"images\[None\] for one image"),
        (torch.rand(0, 3, 8, 8), r"shape \(0, 3, 8, 8\)"),
        (torch.rand(8, 8), r"shape \(8, 8\)"),
        (torch.rand(2, 3, 8, 8, device="meta"), "without plain values"),
        ("photo.png", "images is a str, 'photo.png'"),
        (None, "images is a NoneType"),
        (7, "images is a int"),
        ({"a": FIRST}, "images is a dict"),
        ([], "images are an empty list"),
        ([FIRST[0], "photo.png"], r"images\[1\] is a str"),
        ([FIRST[0], torch.rand(2, 3, 8, 8)], r"images\[1\] has shape \(2, 3, 8, 8\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        read_images(images, RGB)
    assert str(refused.value).startswith("images")


KNOWN = PixelStatistics(mean=0.85, std=0.3, image_std=0.05)
PAPER = ImageForm(channels=1, size=8, pixels=KNOWN)


def page(count: int = 6) -> torch.Tensor:
    """Dark strokes on white paper."""
    images = torch.ones(count, 1, 8, 8)
    images[:, :, 3:5, :4] = 0.1
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (1 - page(), r"mean 0\.\d+, as if inverted .* the training images have mean 0.850"),
        (page() / 255, "divided by 255 twice"),
        (torch.nn.functional.interpolate(page(), size=16), "16 x 16 pixels, far from the 8 x 8"),
        (torch.nn.functional.interpolate(page(), size=4), "4 x 4 pixels, far from the 8 x 8"),
        (
            torch.nn.functional.pad(page(), (3, 3), value=1.0),
            r"8 x 14 pixels, of another aspect than the 8 x 8 .* 8 x 8",
        ),
        ([page(1)[0], torch.ones(1, 14, 8)], r"images\[1\] is 14 x 8 pixels, of another aspect"),
        ([Image.new("L", (20, 10), 217)], r"images\[0\] is 10 x 20 pixels, of another aspect"),
    ],
)
def test_what_is_unlike_training_is_warned_of(images: Any, message: str) -> None:
    with pytest.warns(InputWarning, match=message):
        read_images(images, PAPER)


def test_bytes_of_zeros_and_ones_are_warned_of() -> None:
    with pytest.warns(InputWarning, match="no value above 1"):
        read_images(page().byte(), GREY)


def test_what_is_like_training_passes_in_silence() -> None:
    bicubic = torch.nn.functional.interpolate(page(), size=10, mode="bicubic")
    assert bicubic.max() > 1  # overshoots, as it does
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_images(page(), PAPER), page())
        assert read_images(bicubic, PAPER).aminmax().max <= 1
        read_images(page(1).new_zeros(1, 1, 8, 8), PAPER)  # one blank image may be black
        large = [Image.fromarray((np.asarray(image[0]) * 255).astype(np.uint8)).resize((40, 30)) for image in page()]
        read_images(large, PAPER)  # photos are larger, and scaled as files are


@pytest.fixture(scope="module")
def classifier() -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config(())))


def test_a_task_is_the_same_from_every_form(classifier: RoutedClassifier) -> None:
    """Adapting and predicting from bytes, arrays with channels last and RGB is adapting to the tensor."""
    size = classifier.router.config.data.size
    grey = np.random.default_rng(2).integers(0, 256, (6, size, size), dtype=np.uint8)
    tensor = torch.from_numpy(grey).float().unsqueeze(1) / 255.0
    labels = [5, 2, 5, 2, 9, 9]
    straight = classifier.adapt(tensor, labels).predict_proba(tensor)
    for form in (grey, list(grey), grey[..., None], np.repeat(grey[..., None], 3, -1), tensor.double().numpy()):
        task = classifier.adapt(form, labels)
        torch.testing.assert_close(task.predict_proba(form), straight, atol=1e-5, rtol=1e-4)
    task = classifier.adapt([Image.fromarray(image) for image in grey], labels)
    assert task is classifier.adapt(tensor, labels)  # the very same pixels
    assert task.classes == (2, 5, 9)
    assert set(task.predict(grey)) <= {2, 5, 9}
    assert np.mean(np.array(task.predict(grey)) == np.array(labels)) >= 0  # integers compare with integers
    assert [type(label) for label in task.predict(grey)] == [int] * 6


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int32, np.float16, np.float32, np.float64, np.bool_, np.complex64, "<U2", object]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)
junk = anything | arrays | st.builds(list, st.lists(arrays, max_size=3))
QUIET = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def message(call: Callable[[], object]) -> str | None:
    """What a call says that refuses its arguments; None for an answer. Anything but a ValueError is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except ValueError as error:
            return str(error)
    return None


@QUIET
@given(images=junk, labels=junk, good=st.sampled_from(["images", "labels", "neither"]))
def test_adapt_answers_or_names_its_argument(classifier: RoutedClassifier, images: Any, labels: Any, good: str) -> None:
    images = FIRST if good == "images" else images
    labels = LABELS if good == "labels" else labels
    told = message(lambda: classifier.adapt(images, labels))
    assert told is None or told.startswith(("images", "labels", "got"))


@QUIET
@given(images=junk, option=anything)
def test_every_argument_is_named(classifier: RoutedClassifier, images: Any, option: Any) -> None:
    task = classifier.adapt(FIRST, LABELS)
    calls: dict[str, Callable[[], object]] = {
        "images": lambda: task.predict(images),
        "seed": lambda: classifier.adapt(FIRST, LABELS, seed=option),
        "rule": lambda: task.predict(FIRST, option),
        "refine": lambda: classifier.adapt(FIRST, LABELS, refine=option),
        "threshold": lambda: task.predict_sets(FIRST, option),
        "count": lambda: task.suggest(FIRST, count=option),
    }
    for name, call in calls.items():
        told = message(call)
        assert told is None or name in told
