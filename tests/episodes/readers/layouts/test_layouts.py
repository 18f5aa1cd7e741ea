"""Every layout, on a small folder that is laid out and written as the published one is."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.registry import names

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = [7, 7, 7, 3, 3, 3]


def dump(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, 2))


def pictures(folder: Path, ending: str = "png") -> None:
    for row, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / f"n{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"n{label}" / f"{row}.{ending}")


def png(image: np.ndarray) -> np.ndarray:
    """What OpenCV's imencode gives: a column of bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)[:, None]


def cifar_fs_pickle(root: Path) -> None:
    dump(root / "CIFAR_FS_val.pickle", {"data": PIXELS, "labels": LABELS})


def cifar_fs_folder(root: Path) -> None:
    pictures(root / "data")
    (root / "splits" / "bertinetto").mkdir(parents=True)
    (root / "splits" / "bertinetto" / "val.txt").write_text("n7\nn3\n")


def fc100_pickle(root: Path) -> None:
    dump(root / "FC100_val.pickle", {"data": PIXELS, "labels": np.array(LABELS)})


def fc100_folder(root: Path) -> None:
    pictures(root / "val")


def cifar_batches(root: Path) -> None:
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(6, -1)
    dump(root / "val", {b"data": rows, b"fine_labels": LABELS, b"coarse_labels": [0] * 6})
    dump(root / "meta", {b"fine_label_names": [f"n{k}".encode() for k in range(10)]})


def mini_cache(root: Path) -> None:
    order = [3, 0, 4, 1, 5, 2]
    rows = {f"n{label}": [order.index(i) for i in range(6) if LABELS[i] == label] for label in (7, 3)}
    dump(root / "mini-imagenet-cache-val.pkl", {"image_data": PIXELS[order], "class_dict": rows})


def mini_split(root: Path) -> None:
    data = {"data": PIXELS, "labels": LABELS, "catname2label": {"n7": 7, "n3": 3}}
    dump(root / "miniImageNet_category_split_val.pickle", data)


def mini_table(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for row, image in enumerate(PIXELS):
        Image.fromarray(image).save(root / "images" / f"{row}.png")
    lines = [f"{row}.png,n{label}" for row, label in enumerate(LABELS)]
    (root / "val.csv").write_text("\n".join(["filename,label", *lines]))


def tiered_pngs(root: Path) -> None:
    dump(root / "val_images_png.pkl", [png(image) for image in PIXELS])
    called = [f"n{k}" for k in range(10)]
    dump(root / "val_labels.pkl", {"label_specific": np.array(LABELS), "label_specific_str": called})


def tiered_array(root: Path) -> None:
    root.mkdir(parents=True)
    np.savez(root / "val_images.npz", images=PIXELS)
    dump(root / "val_labels.pkl", {"label_specific": np.array(LABELS), "label_general": np.zeros(6, int)})


def file_lists(root: Path) -> None:
    pictures(root / "source")
    listed = {
        "label_names": [f"n{k}" for k in range(10)],
        "image_names": [f"/home/user/filelists/cub/source/n{k}/{row}.png" for row, k in enumerate(LABELS)],
        "image_labels": LABELS,
    }
    (root / "val.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("kind", "write", "called"),
    [
        ("cifar_fs", cifar_fs_pickle, ("3", "7")),
        ("cifar_fs", cifar_fs_folder, ("n3", "n7")),
        ("cifar_fs", fc100_folder, ("n3", "n7")),
        ("fc100", fc100_pickle, ("3", "7")),
        ("fc100", fc100_folder, ("n3", "n7")),
        ("cifar", cifar_batches, ("n3", "n7")),
        ("mini_imagenet", mini_cache, ("n3", "n7")),
        ("mini_imagenet", mini_split, ("3", "7")),
        ("mini_imagenet", mini_table, ("n3", "n7")),
        ("mini_imagenet", fc100_folder, ("n3", "n7")),
        ("tiered_imagenet", tiered_pngs, ("n3", "n7")),
        ("tiered_imagenet", tiered_array, ("3", "7")),
        ("tiered_imagenet", fc100_folder, ("n3", "n7")),
        ("file_lists", file_lists, ("n3", "n7")),
    ],
)
def test_a_layout_is_read_by_its_kind(
    kind: str, write: Callable[[Path], None], called: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "data")
    settings = [f"data.kind={kind}", f"data.path='{tmp_path / 'data'}'", "data.channels=3", "data.validation='val'"]
    pool = build_pool(load_config(None, settings), "validation")
    assert pool.class_names == (called,)
    for k, label in enumerate((3, 7)):  # the pictures themselves, in the right class, the right way round
        expected = PIXELS[np.array(LABELS) == label].transpose(0, 3, 1, 2)
        found = pool.images[pool.labels[:, 0] == k]
        assert {bytes(x) for x in found.numpy()} == {bytes(np.ascontiguousarray(x)) for x in expected}
    assert torch.equal(pool.domain, torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("kind", names("layout"))
def test_a_folder_of_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    settings = [f"data.kind={kind}", f"data.path='{tmp_path}'"]
    with pytest.raises(ValueError, match=r"no split 'train' of this layout: found readme\.txt; expected "):
        build_pool(load_config(None, settings), "train")


def test_a_list_reaches_nothing_outside_its_folder(tmp_path: Path) -> None:
    file_lists(tmp_path / "data")
    Image.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    said = {"label_names": ["a"], "image_names": ["../secret.png"], "image_labels": [0]}
    (tmp_path / "data" / "base.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"secret\.png, which is not below"):
        build_pool(load_config(None, ["data.kind=file_lists", f"data.path='{tmp_path / 'data'}'"]), "train")


def test_an_unknown_kind_is_named_with_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"no layout 'cifarfs'; did you mean 'cifar_fs'"):
        load_config(None, ["data.kind=cifarfs", "data.path='x'"])
    with pytest.raises(ValueError, match=r"kind 'fc100' needs a path"):
        load_config(None, ["data.kind=fc100"])
