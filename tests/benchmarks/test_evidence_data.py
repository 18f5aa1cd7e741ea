"""benchmarks/evidence: splits that share nothing, arrays without duplicates, a small copy of the same bytes."""

from __future__ import annotations

import io
import json
import string
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(HERE / "evidence"), str(HERE / "data")]

import arrays  # noqa: E402
import emoji_classes  # noqa: E402
import enlarged  # noqa: E402
import packing  # noqa: E402
import suite  # noqa: E402
from archives import MNIST  # noqa: E402
from domains import DOMAINS  # noqa: E402
from pictures import Domain, Picture  # noqa: E402

SPLIT = suite.Split("class", {"sources": ("b",), "router": ("a", "d"), "validation": (), "test": ("c",)})


def picture(name: str, values: tuple[str, ...], seed: int) -> Picture:
    return Picture(name, values, np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def made(folder: Path, name: str = "emoji", least: int = 2) -> dict:
    drawn = [picture(f"{c}{v}{i}", (c, v), hash_of(c, v, i)) for c in "dcba" for v in "xy" for i in range(6)]
    drawn.append(picture("again", ("a", "x"), hash_of("a", "x", 0)))  # twice in a class: stays once
    drawn.append(picture("both", ("c", "x"), hash_of("d", "y", 1)))  # under two classes: goes
    domain = Domain(name, ("class", "vendor"), {}, lambda paths, names: iter(()), least, "made")
    return arrays.write_domain(folder / f"{name}.safetensors", domain, SPLIT, drawn, {})


def hash_of(*parts: object) -> int:
    return int.from_bytes("".join(map(str, parts)).encode(), "big")


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_share_no_class_and_have_enough_for_five_ways(domain: str) -> None:
    split = suite.Split.of(domain)  # refuses a name in two splits
    least = 3 if split.attribute == "script" else 5
    trained = domain in suite.TRAINED
    assert all((len(split.names[part]) >= least) == (trained or part == "test") for part in suite.SPLITS)
    assert list(suite.TRAINED + suite.UNSEEN) == list(DOMAINS)


def test_emojis_are_split_as_before() -> None:
    split = suite.Split.of("emoji").names
    assert set(split["test"]) == set(emoji_classes.SPLIT["test"])
    assert set(split["sources"]) < set(emoji_classes.SPLIT["train"])
    assert {name for names in split.values() for name in names} == {n for g in emoji_classes.SPLIT.values() for n in g}


def test_arrays_have_no_duplicates_and_a_split_is_its_classes(tmp_path: Path) -> None:
    said = made(tmp_path)
    assert said["left_out_as_duplicates"] == 3
    pool = suite.load_pool(tmp_path, "emoji", "router", None)
    assert pool.class_names == (("a", "d"), ("x", "y"))
    assert torch.equal(pool.labels[:, 0].bincount(), torch.tensor([12, 11]))
    assert pool.duplicates() == []
    row = int(((pool.labels[:, 0] == 1) & (pool.labels[:, 1] == 1)).nonzero()[0])
    assert torch.equal(
        pool.images[row], torch.from_numpy(picture("", (), hash_of("d", "y", 0)).pixels).permute(2, 0, 1)
    )
    assert suite.load_pool(tmp_path, "emoji", "test").class_names == (("c",),)
    with pytest.raises(ValueError, match=r"splits \['sources', 'router', 'test'\]; expected 'emoji' with 'validation'"):
        suite.load_pool(tmp_path, "emoji", "validation")
    with pytest.raises(ValueError, match="cannot be read"):
        suite.load_pool(tmp_path, "glyph", "test")


def test_several_domains_are_one_pool(tmp_path: Path) -> None:
    made(tmp_path)
    made(tmp_path, "glyph")
    pool = suite.load_split(tmp_path, "router", ["emoji", "glyph"])
    assert pool.class_names == (("emoji/a", "emoji/d", "glyph/a", "glyph/d"),)
    assert pool.domain_names == ("emoji", "glyph")
    assert torch.equal(pool.labels[:, 0] // 2, pool.domain)


def test_a_class_with_too_few_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too few of \{'d': 11\}; expected at least 12"):
        made(tmp_path, least=12)
    assert list(tmp_path.iterdir()) == []


def test_a_small_copy_unpacks_to_the_same_bytes(tmp_path: Path) -> None:
    made(tmp_path)
    packing.pack(tmp_path, ["emoji"], tmp_path / "suite.zip")
    (tmp_path / "other").mkdir()
    assert packing.unpack(tmp_path / "suite.zip", tmp_path / "other") == ["emoji"]
    name = "emoji.safetensors"
    assert (tmp_path / "other" / name).read_bytes() == (tmp_path / name).read_bytes()
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no file that data\.py --pack wrote"):
        packing.unpack(tmp_path / "bad.zip", tmp_path / "other")


def test_scaled_pictures_come_back_whatever_they_show() -> None:
    rng = np.random.default_rng(0)
    smooth = np.stack([enlarged.enlarge(image) for image in rng.integers(0, 256, (20, 28, 28)).astype(np.uint8)])
    small, rest = enlarged.split(smooth)
    assert small.shape == (20, 28, 28)
    assert (rest != 128).mean() < 0.1  # of noise, the worst there is
    for images in (smooth, rng.integers(0, 256, (5, 64, 64)).astype(np.uint8)):
        assert (enlarged.joined(*enlarged.split(images)) == images).all()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """An archive of digits as npm packs it: digit d is all of value d / 10, but for a pixel that counts."""
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / MNIST.pattern, "w:gz") as tar:
        for digit in string.digits:
            values = np.full((200, 784), int(digit) / 10)
            values[:, 0] = np.arange(200) / 200
            raw = json.dumps({"data": values.round(3).ravel().tolist()}).encode()
            member = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return folder


def test_the_command_makes_a_domain_from_an_archive(archives: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(HERE / "evidence" / "data.py"),
        "--out",
        str(tmp_path / "suite"),
        "--domains",
        "mnist",
    ]
    done = subprocess.run([*command, "--from", str(archives)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test 2000 of 10" in done.stdout
    suite_folder, small = tmp_path / "suite", tmp_path / "small.zip"
    packing.pack(suite_folder, ["mnist"], small)
    with zipfile.ZipFile(small) as archive:
        assert {"mnist/small000000.webp", "mnist/rest000000.webp"} <= set(archive.namelist())
    (tmp_path / "again").mkdir()
    packing.unpack(small, tmp_path / "again")
    name = "mnist.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (suite_folder / name).read_bytes()
    assert "licence of mnist: MIT" in done.stdout
    pool = suite.load_pool(tmp_path / "suite", "mnist", "test")
    assert [int(pool.images[pool.labels[:, 0] == d][0, 0, 32, 32]) for d in range(10)] == [
        round(25.5 * d) for d in range(10)
    ]
    again = subprocess.run(command, capture_output=True, text=True, check=False)  # made already: needs no archive
    assert again.returncode == 0, again.stderr
