"""Decoding against pixels that were written, and against closed forms."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from pyro_smat.episodes.readers.decode import MAX_PIXELS, read_images, to_pixels
from pyro_smat.episodes.readers.listing import LeftOutWarning


def test_a_file_a_folder_and_a_list(tmp_path, write_image):
    second, first = write_image(tmp_path / "b.png", 1), write_image(tmp_path / "a.PNG", 2)
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("not an image")
    expected = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 255
    with pytest.warns(LeftOutWarning, match=r"1 file was left out: 1 end in .txt \(.*notes.txt\)"):
        images, names = read_images(tmp_path)
    assert names == ["a.PNG", "b.png"]
    assert torch.equal(images, expected)
    one, name = read_images(str(tmp_path / "b.png"))
    assert (one.shape, name) == ((1, 3, 6, 6), [str(tmp_path / "b.png")])
    assert torch.equal(one[0], expected[1])
    both, names = read_images([tmp_path / "b.png", tmp_path / "a.PNG"])
    assert names == [str(tmp_path / "b.png"), str(tmp_path / "a.PNG")]
    assert torch.equal(both, expected.flip(0))


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "TIFF", "ppm", "jfif", "jpe", "avif", "apng", "jp2"]
)
def test_every_format(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
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
    with pytest.raises(ValueError, match="has no images of its own; expected png, jpg"):
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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("name", ["picture", "picture.2024", "picture of may", "picture.png"])
def test_an_image_is_known_by_its_content_where_its_name_says_nothing(tmp_path, kind, name):
    Image.new("RGB", (8, 8), (200, 40, 90)).save(tmp_path / name, format=kind)
    images, names = read_images(tmp_path)
    assert names == [name]
    expected = torch.tensor([200, 40, 90]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8) / 255
    torch.testing.assert_close(images, expected, atol=4 / 255, rtol=0)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    expected = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 6)
    for kind, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        path = tmp_path / f"moving.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        with Image.open(path) as image:
            assert image.n_frames == 3
        torch.testing.assert_close(read_images(path)[0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_sixteen_bits_however_dark(tmp_path, suffix):
    """A picture whose values all fit into 8 bits is black, not bright."""
    values = np.array([[0, 100, 128, 129, 255, 257, 32896, 65535]], dtype=np.uint16)
    for part in (values, values[:, :5]):
        Image.fromarray(part).save(tmp_path / f"deep.{suffix}")
        pixels = read_images(tmp_path / f"deep.{suffix}", channels=1)[0] * 255
        assert pixels.round().flatten().tolist() == [round(v / 257) for v in part[0].tolist()]


def test_ranges_that_nobody_states_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif .*floating point, of unknown range; save it with 8 or 16 bits"):
        read_images(tmp_path / "float.tif")
    for wrong in (70_000, -1):
        Image.fromarray(np.array([[0, wrong]], dtype=np.int32)).save(tmp_path / "wide.tif")
        with pytest.raises(ValueError, match=rf"wide.tif .*pixels range from .*{wrong}.*expected 8 or 16 bits"):
            read_images(tmp_path / "wide.tif")


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_is_ink_on_white(tmp_path, suffix):
    ink = np.zeros((8, 32, 4), dtype=np.uint8)
    ink[:, 8:16, 0], ink[:, 16:24, 3], ink[:, 24:] = 255, 255, (51, 102, 0, 51)
    Image.frombytes("CMYK", (32, 8), ink.tobytes()).save(
        tmp_path / f"ink.{suffix}", **({"quality": 100} if suffix == "jpg" else {})
    )
    pixels = read_images(tmp_path / f"ink.{suffix}")[0][0, :, 4, [4, 12, 20, 28]].T
    share = ink[4, [4, 12, 20, 28]] / 255
    expected = (1 - share[:, :3]) * (1 - share[:, 3:])
    torch.testing.assert_close(pixels, torch.from_numpy(expected).float(), atol=4 / 255, rtol=0)


def test_palettes_with_transparency_from_a_file(tmp_path):
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    palette.putdata([0, 1, 2])
    palette.save(tmp_path / "x.png", transparency=bytes([0, 255, 51]))
    pixels = (read_images(tmp_path / "x.png")[0][0, :, 0].T * 255).round()
    assert pixels.tolist() == [[255, 255, 255], [40, 50, 60], [204, 204, 204]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_images(tmp_path / "bits.png", channels=1)[0].flatten().tolist() == [1, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_rotation_of_exif(tmp_path, orientation, suffix):
    shown = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stored = {  # how a camera writes what should be shown like that
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    pixels = (read_images(tmp_path / f"x.{suffix}")[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(pixels, shown)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    """A PNG of 70 million claimed pixels whose data are cut: decoding it would fail in another way."""
    header = struct.pack(">IIBBBBB", 10_000, 7_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c"))
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=rf"bomb.png .*10000 x 7000 = 70,000,000 pixels; expected at most {MAX_PIXELS:,}"
    ):
        read_images(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    Image.new("L", (20, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"20 x 30 = 600 pixels; expected at most 599"):
        read_images(tmp_path / "small.png", max_pixels=599)
    assert read_images(tmp_path / "small.png", max_pixels=600)[0].shape == (1, 3, 30, 20)


def test_a_file_that_would_run_a_program_is_no_image(tmp_path):
    """PostScript goes through Ghostscript; under the name of an image it is refused."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    with pytest.raises(ValueError, match=r"x.png cannot be read as an image"):
        read_images(tmp_path / "x.png")
