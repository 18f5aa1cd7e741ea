"""Decoding against pixels that were written, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_smat.episodes.readers.decode import read_images, to_pixels


def test_a_file_a_folder_and_a_list(tmp_path, write_image):
    second, first = write_image(tmp_path / "b.png", 1), write_image(tmp_path / "a.PNG", 2)
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("not an image")
    expected = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 255
    images, names = read_images(tmp_path)
    assert names == ["a.PNG", "b.png"]
    assert torch.equal(images, expected)
    one, name = read_images(str(tmp_path / "b.png"))
    assert (one.shape, name) == ((1, 3, 6, 6), [str(tmp_path / "b.png")])
    assert torch.equal(one[0], expected[1])
    both, names = read_images([tmp_path / "b.png", tmp_path / "a.PNG"])
    assert names == [str(tmp_path / "b.png"), str(tmp_path / "a.PNG")]
    assert torch.equal(both, expected.flip(0))


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif"])
def test_every_format(tmp_path, suffix):
    Image.new("RGB", (8, 8), (200, 40, 90)).save(tmp_path / f"x.{suffix}")
    images, _ = read_images(tmp_path)
    expected = torch.tensor([200, 40, 90]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8) / 255
    torch.testing.assert_close(images, expected, atol=4 / 255, rtol=0)


def test_transparency_is_laid_on_white():
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = [0, 255, 51]  # transparent, opaque and one fifth black
    assert to_pixels(Image.fromarray(pixels), None, 1)[0, 0].tolist() == [255, 0, 204]
    grey = Image.fromarray(np.array([[[0, 0], [0, 255]]], dtype=np.uint8), mode=None)
    assert grey.mode == "LA"
    assert to_pixels(grey, None, 1)[0, 0].tolist() == [255, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    assert to_pixels(palette, None, 3)[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_sixteen_bits_and_rotation(tmp_path):
    Image.fromarray(np.array([[0, 257 * 7, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (read_images(tmp_path / "deep.png", channels=1)[0] * 255).round().flatten().tolist() == [0, 7, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert read_images(tmp_path / "turned.png", channels=1)[0].flatten(2).tolist() == [[[0, 1]]]
    assert read_images(tmp_path / "turned.png")[0].shape == (1, 3, 2, 1)


def test_resizing_crops_the_centre_and_averages():
    wide = np.zeros((4, 8), dtype=np.uint8)
    wide[:, 2:4], wide[:, 4:6] = 100, 200
    wide[:, :2] = wide[:, 6:] = 255  # outside of the central square
    small = to_pixels(Image.fromarray(wide), 2, 1)[0]
    assert small.shape == (2, 2)
    # A triangle of half-width 2 around position 1: weights 3/4, 3/4, 1/4 on 100, 100, 200, and nothing of the 255.
    assert small.tolist() == [[114, 186]] * 2
    assert to_pixels(Image.fromarray(wide.T), 2, 1)[0].tolist() == small.T.tolist()
    square = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert (to_pixels(Image.fromarray(square), 5, 3) == square.transpose(2, 0, 1)).all()


def test_grey_is_the_luma_of_rgb(tmp_path, write_image):
    pixels = write_image(tmp_path / "x.png")
    grey, _ = read_images(tmp_path, channels=1)
    luma = pixels @ np.array([299, 587, 114]) / 1000
    assert np.abs(grey[0, 0].numpy() * 255 - luma).max() <= 1


def test_refusals(tmp_path, write_image):
    with pytest.raises(ValueError, match=r"nowhere.png is not there; expected an image file"):
        read_images(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"has no images of its own; expected files ending in .png"):
        read_images(tmp_path)
    write_image(tmp_path / "cats" / "x.png")
    with pytest.raises(ValueError, match=r"has no images of its own, only folders \['cats'\]"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match="empty list of image files"):
        read_images([])
    for options in ({"size": 0}, {"size": 3.5}):
        with pytest.raises(ValueError, match="expected a number of pixels of at least 1"):
            read_images(tmp_path / "cats", **options)
    with pytest.raises(ValueError, match=r"channels is 2; expected 1 \(grey\) or 3"):
        read_images(tmp_path / "cats", channels=2)
    write_image(tmp_path / "cats" / "y.png", size=(7, 5))
    with pytest.raises(ValueError, match=r"x.png is 6 x 6 and .*y.png is 7 x 5 pixels; expected one size \(pass size"):
        read_images(tmp_path / "cats")
    assert read_images(tmp_path / "cats", size=4)[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_files_are_named(tmp_path, write_image, suffix, damage):
    write_image(tmp_path / "fine.png", size=40)
    bad = tmp_path / f"bad.{suffix}"
    write_image(bad, size=40)
    whole = bad.read_bytes()
    bad.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"<html>404</html>", "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"bad.{suffix} cannot be read as an image .*replace or remove the file"):
        read_images(tmp_path)
