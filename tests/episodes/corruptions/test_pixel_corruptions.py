"""Noise, blur, compression and marks against closed forms and other libraries."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from pyro_smat.episodes.corruptions.gaussian_blur import GaussianBlur
from pyro_smat.episodes.corruptions.gaussian_noise import STANDARD_DEVIATIONS, GaussianNoise
from pyro_smat.episodes.corruptions.jpeg import QUALITIES, Jpeg
from pyro_smat.episodes.corruptions.spurious_mark import SpuriousMark, mark_place

LABELS = np.array([0, 1, 2, 0])


def change(corruption, images, *, labels=LABELS, way=3, query=False, seed=0):
    return corruption.change(images, labels, way, np.random.default_rng(seed), query=query)


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_is_normal_with_the_stated_standard_deviation(severity):
    grey = np.full((4, 3, 64, 64), 0.5, dtype=np.float32)
    noise = change(GaussianNoise(severity), grey) - grey
    sigma = STANDARD_DEVIATIONS[severity - 1]
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 5 * sigma / noise.size**0.5
    assert (np.abs(noise) > 1.96 * sigma).mean() == pytest.approx(0.05, abs=0.005)
    assert abs(np.corrcoef(noise[0, 0].ravel(), noise[0, 1].ravel())[0, 1]) < 0.08


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_equals_torchvision(severity):
    images = np.random.default_rng(0).random((4, 3, 64, 64), dtype=np.float32)
    sigma = 2 * (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    expected = gaussian_blur(torch.from_numpy(images), 17, sigma).numpy()
    inside = (..., slice(10, -10), slice(10, -10))  # the borders are continued differently
    np.testing.assert_allclose(change(GaussianBlur(severity), images)[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_equals_pillow(channels):
    images = np.random.default_rng(0).random((4, channels, 16, 20), dtype=np.float32)
    found = change(Jpeg(4), images)
    assert found.shape == images.shape
    pixels = np.rint(255 * images[2]).astype(np.uint8)
    parts = [pixels.transpose(1, 2, 0)] if channels == 3 else list(pixels)
    for c, part in enumerate(parts):
        file = BytesIO()
        Image.fromarray(part).save(file, "JPEG", quality=QUALITIES[3])
        expected = np.asarray(Image.open(file)) / np.float32(255)
        got = found[2].transpose(1, 2, 0) if channels == 3 else found[2, c]
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_marks_tell_the_labels_of_supports_and_mislead_in_queries():
    dark, bright = np.zeros((300, 1, 32, 32), dtype=np.float32), np.ones((300, 1, 32, 32), dtype=np.float32)
    labels = np.arange(300) % 5
    marked = change(SpuriousMark(3), dark, labels=labels, way=5)
    places = [tuple(np.argwhere(image[0] > 0)[0]) for image in marked]
    assert len({(k, p) for k, p in zip(labels, places, strict=True)}) == 5
    assert len(set(places)) == 5
    assert (marked.sum((1, 2, 3)) == 16).all()  # 4 x 4 pixels
    assert (change(SpuriousMark(3), bright, labels=labels, way=5).sum((1, 2, 3)) == 32 * 32 - 16).all()
    by_place = dict(zip(places, labels, strict=False))
    queries = change(SpuriousMark(3), dark, labels=labels, way=5, query=True)
    shown = np.array([by_place[tuple(np.argwhere(image[0] > 0)[0])] for image in queries])
    assert (shown != labels).all()
    moves = np.bincount((shown - labels) % 5, minlength=5)
    assert moves[0] == 0
    assert (np.abs(moves[1:] - 75) < 5 * 56**0.5).all()


@pytest.mark.parametrize("way", [2, 4, 5, 20])
def test_places_of_marks_lie_on_the_border_and_differ(way):
    places = [mark_place(k, way, 28, 20) for k in range(way)]
    assert len(set(places)) == way
    assert places[0] == (0, 0)
    assert all(top in (0, 28) or left in (0, 20) for top, left in places)
    if way == 4:
        assert places == [(0, 0), (4, 20), (28, 20), (24, 0)]
