"""Where images stand in a pool: by hand, again after any change, and not again without one."""

from __future__ import annotations

import torch

from pyro_smat.networks.places import Places

IMAGES = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1


def test_rows_below_zero_are_own_images_unless_they_are_padding() -> None:
    rows = torch.tensor([[5, -1, 2], [7, 0, -1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    placed = Places().of(IMAGES, rows, mask)
    assert placed.rows.tolist() == [[5, 0, 2], [7, 0, 0]]
    assert placed.own is not None
    assert placed.own.tolist() == [[False, True, False], [False, False, False]]
    assert placed.highest == 7
    assert Places().of(IMAGES, rows[1:], mask[1:]).own is None


def test_without_a_mask_black_images_are_padding() -> None:
    rows, images = torch.tensor([[5, -1, 2], [7, 0, -1]]), IMAGES.clone()
    images[0, 1] = 0
    places = Places()
    first = places.of(images, rows, None)
    assert first.own is not None
    assert first.own.tolist() == [[False, False, False], [False, False, True]]
    images[1, 2] = 0  # the rows are the same, the images are not
    assert places.of(images, rows, None).own is None


def test_padding_has_no_say_in_the_highest_row() -> None:
    rows, mask = torch.tensor([[3, 90]]), torch.tensor([[True, False]])
    assert Places().of(IMAGES[:1, :2], rows, mask).highest == 3


def test_nothing_is_found_twice_and_every_change_is_seen() -> None:
    rows, mask = torch.tensor([[3, 4, 5], [0, 1, 2]]), torch.ones(2, 3, dtype=torch.bool)
    places = Places()
    first = places.of(IMAGES, rows, mask)
    assert places.of(IMAGES, rows, mask) is first
    rows[0, 1] = -1
    changed = places.of(IMAGES, rows, mask)
    assert changed.own is not None
    assert changed.own.sum() == 1
    mask[0, 1] = False
    assert places.of(IMAGES, rows, mask).own is None
    assert places.of(IMAGES, rows, torch.ones(2, 3, dtype=torch.bool)).own is not None


def test_changes_that_pytorch_does_not_count_are_seen() -> None:
    with torch.inference_mode():
        rows, mask = torch.tensor([[3, 4, 5], [0, 1, 2]]), torch.ones(2, 3, dtype=torch.bool)
        places = Places()
        assert places.of(IMAGES, rows, mask).highest == 5
        rows.copy_(torch.tensor([[3, 4, 7], [0, 1, 2]]))
        assert places.of(IMAGES, rows, mask).highest == 7


def test_a_part_of_no_images_has_a_place() -> None:
    rows = torch.zeros(2, 0, dtype=torch.long)
    placed = Places().of(torch.zeros(2, 0, 1, 4, 4), rows, rows >= 0)
    assert placed.own is None
    assert placed.rows.shape == (2, 0)
