"""The glyph world: a full cross of attributes, letters that differ, and a cache that can be trusted."""

import hashlib
import itertools
import unicodedata

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from other_process import run_python, start_python
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pyro_smat.episodes.readers import glyphs
from pyro_smat.episodes.readers.glyphs import FACES, LETTERS, ROTATIONS, STYLES, glyph_pool, letter_name

FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
ALL_LETTERS = "".join(LETTERS.values())
SHAPE = (len(FACES), len(ROTATIONS), len(STYLES))


@pytest.fixture
def few_letters(monkeypatch):
    """Three letters, so that drawing takes no time."""
    monkeypatch.setitem(glyphs.LETTERS, "test", "GξЫ")


@pytest.fixture
def no_drawing(monkeypatch):
    """Any drawing fails."""

    def refuse(letter, size):
        raise AssertionError(f"drew {letter}")

    return lambda: monkeypatch.setattr(glyphs, "_draw_letter", refuse)


@pytest.fixture(scope="module")
def drawn():
    """``(letters, faces, rotations, styles, 32, 32)`` floats in [0, 1]."""
    letters = LETTERS["test"][:4] + LETTERS["ood"][:4]
    return np.stack([glyphs._draw_letter(letter, 32).reshape(*SHAPE, 32, 32) for letter in letters]) / 255


def test_pool_is_the_full_cross_of_its_attributes(few_letters, tmp_path):
    pool = glyph_pool("test", cache_dir=tmp_path)
    assert pool.images.shape == (3 * 7 * 7 * 7, 1, 32, 32)
    assert pool.attributes == ("letter", "face", "rotation", "style")
    assert [len(names) for names in pool.class_names] == [3, 7, 7, 7]
    assert set(map(tuple, pool.labels.tolist())) == set(itertools.product(range(3), range(7), range(7), range(7)))
    assert pool.class_names[0] == ("latin:capital-g", "greek:small-xi", "cyrillic:capital-yeru")
    assert len(pool.images.flatten(1).unique(dim=0)) == len(pool)


def test_labels_say_what_the_images_show(few_letters, tmp_path):
    pool = glyph_pool("test", cache_dir=tmp_path)
    row = (pool.labels == torch.tensor([1, 2, 3, 4])).all(1).nonzero().item()
    expected = glyphs._draw_letter("ξ", 32).reshape(*SHAPE, 32, 32)[2, 3, 4]
    assert np.array_equal(pool.images[row, 0].numpy(), expected)


def test_the_same_images_in_another_process_and_in_another_order(few_letters, tmp_path, monkeypatch):
    here = glyph_pool("test", cache_dir=tmp_path).images
    monkeypatch.setitem(glyphs.LETTERS, "test", "ЫG")
    assert torch.equal(glyph_pool("test", cache_dir=tmp_path).images, torch.cat([here[2 * 343 :], here[:343]]))
    code = f"""
import hashlib
from pyro_smat.episodes.readers import glyphs
glyphs.LETTERS["test"] = "GξЫ"
images = glyphs.glyph_pool("test", cache_dir={str(tmp_path / "other")!r}).images
print(hashlib.sha256(images.numpy()).hexdigest())
"""
    there = run_python("-c", code).strip()
    assert there == hashlib.sha256(here.numpy()).hexdigest()


RENDER = """
import hashlib, sys
from pyro_smat.episodes.readers import glyphs
glyphs.LETTERS["test"] = "GξЫ"
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    images = glyphs.glyph_pool("test", cache_dir=sys.argv[1]).images
    print(hashlib.sha256(images.numpy()).hexdigest())
"""


def test_two_processes_that_render_the_same_cache_at_once(few_letters, tmp_path):
    """Neither waits, neither reads half a file: both draw what is missing, and one file is left."""
    expected = hashlib.sha256(glyph_pool("test", cache_dir=tmp_path / "alone").images.numpy()).hexdigest()
    workers = [start_python("-c", RENDER, tmp_path / "shared") for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=120) for worker in workers]
    assert said == [(f"{expected}\n" * 3, "")] * 2
    assert len(list((tmp_path / "shared").iterdir())) == 1


def test_second_call_reads_the_cache_and_a_spoilt_cache_is_drawn_again(few_letters, no_drawing, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = glyph_pool("test").images
    (file,) = (tmp_path / "pyro-smat").iterdir()  # one file, nothing temporary left
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(glyph_pool("test").images, first)
    assert file.read_bytes() == whole
    file.write_bytes(b"")
    assert torch.equal(glyph_pool("test").images, first)
    no_drawing()
    assert torch.equal(glyph_pool("test").images, first)
    with pytest.raises(AssertionError, match="drew G"):
        glyph_pool("test", size=24)  # another size is another file
    monkeypatch.setattr(glyphs, "_VERSION", -1)
    with pytest.raises(AssertionError, match="drew G"):
        glyph_pool("test")


def test_a_cache_that_cannot_be_written_is_a_warning(few_letters, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot cache images in .*file.*made again"):
        pool = glyph_pool("test", cache_dir=tmp_path / "file")
    assert len(pool) == 3 * 343


def test_other_sizes_show_the_same_picture(few_letters, tmp_path):
    small = glyphs._draw_letter("G", 24).reshape(*SHAPE, 24, 24)[1, 3, 0]
    large = Image.fromarray(glyphs._draw_letter("G", 48).reshape(*SHAPE, 48, 48)[1, 3, 0]).resize((24, 24), 4)
    # the jitter differs, so the pictures agree up to a shift of a pixel or two
    best = max(
        np.corrcoef(np.roll(small, (dy, dx), (0, 1)).ravel(), np.asarray(large).ravel())[0, 1]
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    )
    assert best > 0.9


def test_splits_have_letters_and_alphabets_of_their_own():
    assert len(set(ALL_LETTERS)) == len(ALL_LETTERS)
    assert len({letter_name(letter) for letter in ALL_LETTERS}) == len(ALL_LETTERS)
    alphabets = {split: {unicodedata.name(letter).split()[0] for letter in LETTERS[split]} for split in LETTERS}
    assert alphabets["train"] == alphabets["validation"] == alphabets["test"] == {"LATIN", "GREEK", "CYRILLIC"}
    assert alphabets["ood"] == {"ARMENIAN", "HEBREW", "GEORGIAN", "TIFINAGH"}
    assert sum(map(len, LETTERS.values())) * 343 < 60_000


def test_the_font_draws_every_letter():
    covered = TTFont(FONT).getBestCmap()
    assert [letter for letter in ALL_LETTERS if ord(letter) not in covered] == []


def drawing(letter, angle=0):
    """The font's own drawing, cropped, 24 pixels on its longer side, turned, blurred, as a unit vector."""
    font = ImageFont.truetype(FONT, 100)
    page = Image.new("L", (300, 300), 0)
    ImageDraw.Draw(page).text((80, 60), letter, font=font, fill=255)
    crop = page.crop(page.getbbox())
    scale = 24 / max(crop.size)
    crop = crop.resize(tuple(max(1, round(scale * side)) for side in crop.size), Image.Resampling.BOX)
    page = Image.new("L", (40, 40), 0)
    page.paste(crop, ((40 - crop.width) // 2, (40 - crop.height) // 2))
    page = page.rotate(angle, Image.Resampling.BILINEAR)
    pixels = np.asarray(page.filter(ImageFilter.GaussianBlur(1))).astype(float).ravel()
    return pixels / np.linalg.norm(pixels)


def test_no_two_letters_look_alike_upright_or_turned():
    for pair in ("AΑ", "AА", "oO", "oо", "HН", "cС"):
        assert drawing(pair[0]) @ drawing(pair[1]) > 0.905, pair
    upright = np.stack([drawing(letter) for letter in ALL_LETTERS])
    for angle in range(0, 79, 13):
        turned = np.stack([drawing(letter, angle) for letter in ALL_LETTERS])
        alike = upright @ turned.T - 2 * np.eye(len(upright))
        first, second = np.unravel_index(alike.argmax(), alike.shape)
        assert alike.max() < 0.905, (angle, ALL_LETTERS[first] + ALL_LETTERS[second])


def test_letters_stay_inside_the_image(drawn):
    ink = 1 - drawn[:, :, :, STYLES.index("paper")]
    border = np.ones((32, 32), bool)
    border[1:-1, 1:-1] = False
    assert ink[..., border].sum() < 0.01 * ink.sum()


def test_faces_differ_in_ink(drawn):
    ink = (1 - drawn[:, :, 3, STYLES.index("paper")]).mean((-2, -1))  # (letters, faces)
    face = {name: ink[:, k] for k, name in enumerate(FACES)}
    assert (1.4 * face["hairline"] < face["regular"]).all()
    assert (1.3 * face["regular"] < face["black"]).all()
    assert (face["hollow"] < face["black"]).all()


def test_ilr_has_thick_uprights_and_thin_bars():
    # H: the bar is ink at mid height between the uprights
    image = 255 - glyphs._draw_letter("H", 32).reshape(*SHAPE, 32, 32)[FACES.index("contrast"), 3, 0].astype(float)
    upright = image[9] / 255  # a row through both uprights only
    bar = image[:, 15:17].mean(1) / 255  # columns through the bar only
    assert upright.sum() / 2 > 2.5 * bar.sum()


def test_rotations_are_counter_clockwise_degrees(drawn):
    upright = drawn[:, 1, ROTATIONS.index(0), 0]
    hits = 0
    for letter in range(len(drawn)):
        for angle in ROTATIONS:
            turned = Image.fromarray((255 * (1 - upright[letter])).astype(np.uint8)).rotate(
                angle, Image.Resampling.BILINEAR
            )
            pixels = np.asarray(turned.filter(ImageFilter.GaussianBlur(1))).astype(float)
            scores = []
            for k in range(len(ROTATIONS)):
                other = Image.fromarray((255 * (1 - drawn[letter, 1, k, 0])).astype(np.uint8))
                other = np.asarray(other.filter(ImageFilter.GaussianBlur(1))).astype(float)
                shifts = itertools.product(range(-2, 3), range(-2, 3))
                scores.append(max((np.roll(other, s, (0, 1)) * pixels).sum() / np.linalg.norm(other) for s in shifts))
            hits += ROTATIONS[int(np.argmax(scores))] == angle
    assert hits >= 0.9 * len(drawn) * len(ROTATIONS)


def test_styles_are_what_their_names_say(drawn):
    upright = drawn[:, 1, 3]
    corner = upright[:, :, :4, :4].mean((-2, -1))  # ground only
    style = {name: k for k, name in enumerate(STYLES)}
    assert (corner[:, style["paper"]] > 0.99).all()
    assert (corner[:, style["inverse"]] < 0.01).all()
    assert upright[:, style["inverse"]].max() > 0.95
    assert np.allclose(corner[:, style["dim"]], 0.4, atol=0.01)
    rows, columns = upright[:, style["stripes"]][:, :, 0], upright[:, style["gradient"]][:, 0]
    assert (rows.std(1) > 0.1).all()
    assert np.allclose(np.diff(columns, axis=1), 0.5 / 32, atol=0.005)
    assert (upright[:, style["noise"]][:, :4].std((-2, -1)) > 0.1).all()
    checker = upright[:, style["checker"]][:, :, :2]
    assert (checker.std((-2, -1)) > 0.1).all()


def test_wrong_requests_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"split is 'tset'.*'train', 'validation', 'test', 'ood'"):
        glyph_pool("tset", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="size is 8 pixels; expected at least 16"):
        glyph_pool("test", size=8, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"' ' has no ink in .*DejaVuSans.ttf"):
        glyphs.letter_outline(" ", 64)
