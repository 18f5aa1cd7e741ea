"""Datasets of every kind of image and label, against the array that they were made from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pyro_smat.episodes.readers.dataset import read_dataset
from pyro_smat.episodes.sampler import EpisodeSampler

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Listed(Dataset):
    """Items from lists; counts how often each was asked for."""

    def __init__(self, images, labels, classes=None):
        self.images, self.labels, self.calls = images, labels, Counter()
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.calls[i] += 1
        return self.images[i], self.labels[i]


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(zip(PIXELS, range(12), strict=True))


FORMS = {
    "pil": [Image.fromarray(p) for p in PIXELS],
    "uint8 tensor": CHANNELS_FIRST,
    "float tensor": CHANNELS_FIRST.float() / 255,
    "double array": list(PIXELS / 255.0),
    "float32 array": list(PIXELS.astype(np.float32) / 255),
    "uint8 array": list(PIXELS),
    "transparent array": list(np.concatenate([PIXELS, np.full((12, 5, 7, 1), 255, np.uint8)], -1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image(form):
    pool = read_dataset(Listed(FORMS[form], [i % 3 for i in range(12)]))
    assert torch.equal(pool.images, CHANNELS_FIRST)
    assert pool.labels.flatten().tolist() == [0, 1, 2] * 4
    assert (pool.attributes, pool.class_names) == (("class",), (("0", "1", "2"),))


def test_floating_point_is_rounded_to_the_nearest():
    grey = torch.tensor([[0.0, 0.999, 0.4 / 255, 0.6 / 255, 1.0]])
    assert read_dataset(Listed([grey], [0]), channels=1).images.flatten().tolist() == [0, 255, 0, 1, 255]


def test_grey_images_and_resizing():
    grey = PIXELS[..., 0]
    for images in (list(grey), torch.from_numpy(grey), torch.from_numpy(grey)[:, None], list(grey[..., None])):
        assert torch.equal(read_dataset(Listed(images, [0] * 12), channels=1).images[:, 0], torch.from_numpy(grey))
    assert read_dataset(Listed(list(grey), [0] * 12)).images.shape == (12, 3, 5, 7)
    assert read_dataset(Listed(list(grey), [0] * 12), size=4).images.shape == (12, 3, 4, 4)


@pytest.mark.parametrize("cast", [int, np.int64, np.array, torch.tensor, lambda k: torch.tensor([k])])
def test_every_form_of_label(cast):
    pool = read_dataset(Listed(list(PIXELS), [cast(k) for k in [40, 7, 7] * 4]))
    assert pool.labels.flatten().tolist() == [1, 0, 0] * 4
    assert pool.class_names == (("7", "40"),)


def test_class_names_also_of_a_subset():
    listed = Listed(list(PIXELS), [i % 3 for i in range(12)], classes=["ant", "bee", "cat"])
    assert read_dataset(listed).class_names == (("ant", "bee", "cat"),)
    pool = read_dataset(Subset(Subset(listed, range(1, 9)), [0, 1, 3]))  # items 1, 2 and 4
    assert pool.class_names == (("ant", "bee", "cat"),)
    assert pool.labels.flatten().tolist() == [1, 2, 1]


def test_tensor_and_iterable_datasets():
    assert torch.equal(read_dataset(TensorDataset(CHANNELS_FIRST, torch.arange(12))).images, CHANNELS_FIRST)
    assert torch.equal(read_dataset(Streamed()).images, CHANNELS_FIRST)


def test_every_image_is_decoded_exactly_once():
    listed = Listed([Image.fromarray(p) for p in PIXELS], [i % 3 for i in range(12)])
    sampler = EpisodeSampler(read_dataset(listed), way=3, shot=2, query=2, seed=0)
    for _ in range(20):
        sampler.sample(4)
    assert listed.calls == Counter(range(12))


def unscaled(value: float) -> list:
    images = list(PIXELS.astype(np.float32) / 255)
    images[5] = images[5].copy()
    images[5][0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "Listed is empty; expected at least one"),
        (unscaled(float("nan")), [0] * 12, "item 5: image holds NaN or infinite"),
        (unscaled(float("inf")), [0] * 12, "item 5: image holds NaN or infinite"),
        (unscaled(255.0), [0] * 12, r"item 5: image is floating point from .* to 255; expected \[0, 1\]"),
        (unscaled(-1.5), [0] * 12, "item 5: image is floating point from -1.5 to .*leave out Normalize"),
        (list(PIXELS.astype(np.int32)), [0] * 12, r"item 0: image is int32 \(5, 7, 3\); expected uint8"),
        (torch.from_numpy(PIXELS), [0] * 12, r"item 0: image is torch.uint8 \(5, 7, 3\); expected \(C, H, W\)"),
        (["x.png"], [0], "item 0: image is str x.png; expected a PIL image"),
        (list(PIXELS), [0] * 11 + [-1], "item 11: label is int -1; expected an integer of at least 0"),
        (list(PIXELS), [0, 1.0] * 6, "item 1: label is float 1.0"),
        (list(PIXELS), ["cat"] * 12, "item 0: label is str cat"),
        (list(PIXELS), [torch.zeros(3, dtype=torch.long)] * 12, r"item 0: label is torch.int64 \(3,\)"),
        ([PIXELS[0], PIXELS[1][:4]], [0, 0], "item 0 is 7 x 5 and item 1 is 7 x 4 pixels; expected one size"),
    ],
)
def test_refusals(images, labels, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(Listed(images, labels))


def test_labels_beyond_the_classes_and_items_that_are_no_pairs():
    with pytest.raises(ValueError, match=r"item 7 has label 9; expected one below 3, the length of dataset.classes"):
        read_dataset(Listed(list(PIXELS), [0] * 7 + [9] + [0] * 4, classes=["a", "b", "c"]))
    with pytest.raises(ValueError, match=r"item 0 is a tuple of 1; expected a pair \(image, label\)"):
        read_dataset(TensorDataset(CHANNELS_FIRST))
