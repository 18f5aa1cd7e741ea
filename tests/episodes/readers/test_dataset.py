"""Datasets of every kind of image and label, against the array that they were made from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pyro_smat.episodes.readers.dataset import DarkWarning, read_dataset
from pyro_smat.episodes.readers.duplicates import DuplicateWarning
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


# Names of labels


class Renamed(Listed):
    def __init__(self, labels, classes=None, class_to_idx=None, target_transform=None, first=0):
        super().__init__(list(PIXELS[first : first + len(labels)]), labels, classes)
        if class_to_idx is not None:
            self.class_to_idx = class_to_idx
        if target_transform is not None:
            self.target_transform = target_transform


def named(dataset, **options):
    pool = read_dataset(dataset, **options)
    return [pool.class_names[0][k] for k in pool.labels[:, 0].tolist()]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0, 1], ["cat", "dog"], ["cat", "dog"]),
        ([1, 0], ("cat", "dog"), ["dog", "cat"]),
        ([0, 1], np.array(["cat", "dog"]), ["cat", "dog"]),
        ([0, 1], {"dog": 1, "cat": 0}, ["cat", "dog"]),
        ([0, 1], {1: "dog", 0: "cat"}, ["cat", "dog"]),
        ([3, 7], {7: "dog", 3: "cat", 9: "ant"}, ["cat", "dog"]),
        ([0, 1], 2, ["0", "1"]),
        ([1, 0], [0, 1], ["1", "0"]),
        ([0, 1], [("tench", "Tinca"), ("shark",)], ["tench, Tinca", "shark"]),
        ([0, 1], ["cafe\u0301", "dog"], ["caf\u00e9", "dog"]),
    ],
)
def test_names_are_those_that_the_dataset_gives(labels, classes, expected):
    assert named(Renamed(labels, classes)) == expected
    if isinstance(classes, dict) and all(isinstance(k, str) for k in classes):
        assert named(Renamed(labels, class_to_idx=classes)) == expected
    assert named(Renamed(labels, ["x", "y"] * 5), class_names=classes) == expected  # the caller's count alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [1, 2, 3]}, r"are the numbers \[1, 2, 3\], and it is not clear whether label 1 is the first"),
        ({"classes": ["cat", "cat"]}, "calls labels 0 and 1 both 'cat'"),
        ({"classes": {"cat": 0, "dog": 0}}, "gives two names to one label"),
        ({"classes": {"cat": "a", "dog": "b"}}, "maps 'cat' to 'a'; expected names to labels or labels to names"),
        ({"classes": ["cat", None]}, "holds None; expected names as text"),
        ({"classes": "cat"}, "is str 'cat'; expected names"),
        ({"classes": {"cat", "dog"}}, "is a set, which has no order"),
        ({"classes": lambda: ["cat", "dog"]}, "is function"),
        (
            {"classes": ["cat", "dog"], "class_to_idx": {"dog": 0, "cat": 1}},
            "label 0 'cat' and class_to_idx 'dog'",
        ),
        ({"classes": ["cat", "dog"], "target_transform": abs}, "a target_transform, which may change the labels"),
        (
            {"classes": {5: "cat", 6: "dog"}},
            r"item 0 has label 0; expected one of \[5, 6\], the labels that have",
        ),
    ],
)
def test_names_in_doubt_are_refused_with_the_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(Renamed([0, 1], **options))
    assert named(Renamed([0, 1], **options), class_names=["a", "b"]) == ["a", "b"]


def test_parts_of_a_concatenation_have_names_of_their_own():
    pets, cars = Renamed([0, 1, 1], ["cat", "dog"]), Renamed([0, 1], ["car", "cat"], first=3)
    both = ConcatDataset([pets, cars])
    expected = ["cat", "dog", "dog", "car", "cat"]
    assert named(both) == expected
    assert read_dataset(both).class_names == (("cat", "dog", "car"),)
    rows = [4, 0, 3]
    assert named(Subset(both, rows)) == [expected[i] for i in rows]
    assert named(Subset(Subset(both, rows), [2, 0])) == ["car", "cat"]
    more = ConcatDataset([both, Subset(Renamed([0, 1, 0], ["ant", "dog"], first=6), [1, 2])])
    assert named(more) == [*expected, "dog", "ant"]
    assert named(ConcatDataset([Renamed([4, 5]), Renamed([5], first=2)])) == ["4", "5", "5"]
    with pytest.raises(ValueError, match="part 1 of the ConcatDataset has no names for its classes and others do"):
        read_dataset(ConcatDataset([pets, Renamed([0], first=5)]))
    with pytest.raises(ValueError, match="item 3 has label 9; expected one below 2"):
        read_dataset(ConcatDataset([pets, Renamed([9], ["car", "bus"], first=3)]))


def test_parts_of_a_chain_must_agree():
    class Stream(IterableDataset):
        def __init__(self, classes, first):
            self.classes, self.first = classes, first

        def __iter__(self):
            return iter(zip(PIXELS[self.first :][:2], range(2), strict=True))

    same_names = ChainDataset([Stream(["cat", "dog"], 0), Stream(["cat", "dog"], 2)])
    assert named(same_names) == ["cat", "dog"] * 2
    with pytest.raises(ValueError, match="parts of the ChainDataset have different names"):
        read_dataset(ChainDataset([Stream(["cat", "dog"], 0), Stream(["car", "bus"], 2)]))


def test_duplicates_and_too_large_items_are_named():
    with pytest.warns(DuplicateWarning, match="Listed: 1 of 3 images are there already, .* item 2 is item 0"):
        read_dataset(Listed([PIXELS[0], PIXELS[1], PIXELS[0]], [0, 1, 0]))
    with pytest.raises(ValueError, match=r"item 0: image cannot be read \(it has 7 x 5 = 35 pixels; .* at most 34"):
        read_dataset(Listed(list(PIXELS), [0] * 12), max_pixels=34)


def test_bfloat16_is_read_to_its_precision():
    images = FORMS["float tensor"]
    made = read_dataset(Listed(images.bfloat16(), [0] * 12)).images
    assert (made.int() - CHANNELS_FIRST.int()).abs().max() <= 1


def test_a_loader_is_refused_and_its_dataset_read():
    loader = DataLoader(TensorDataset(CHANNELS_FIRST, torch.arange(12)), batch_size=4)
    with pytest.raises(ValueError, match=r"got a DataLoader, whose items are batches; expected .* loader\.dataset"):
        read_dataset(loader)
    assert torch.equal(read_dataset(loader.dataset).images, CHANNELS_FIRST)


@pytest.mark.parametrize("images", [FORMS["float tensor"] / 255, (CHANNELS_FIRST > 99).byte()])
def test_images_that_were_scaled_twice_are_warned_of(images):
    with pytest.warns(DarkWarning, match="Listed: images have no value above 1 of 255"):
        read_dataset(Listed(images, [0] * 12))


def test_black_images_may_be_black():
    read_dataset(Listed(torch.zeros(1, 3, 5, 7), [0]))
