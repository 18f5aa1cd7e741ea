"""Folder layouts: written here, read back, compared with the pixels that were written."""

from __future__ import annotations

import os
import shutil
import unicodedata

import pytest
import torch

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.duplicates import DuplicateWarning, same_images
from pyro_smat.episodes.readers.folders import LayoutWarning, folder_has_splits, read_folder, write_folder
from pyro_smat.episodes.readers.listing import LeftOutWarning
from pyro_smat.episodes.sampler import EpisodeSampler


def plant(root, write_image, tree: dict[str, int]) -> dict[str, object]:
    """``{"cat": 2}`` writes cat/0.png and cat/1.png; returns the pixels by path."""
    written, seed = {}, 0
    for folder, count in tree.items():
        for i in range(count):
            written[f"{folder}/{i}.png"] = torch.from_numpy(write_image(root / folder / f"{i}.png", seed)).permute(
                2, 0, 1
            )
            seed += 1
    return written


def test_classes(tmp_path, write_image):
    written = plant(tmp_path, write_image, {"dog": 2, "cat": 3})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "__MACOSX" / "x").mkdir(parents=True)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "cat" / ".DS_Store").write_text("junk")
    (tmp_path / "cat" / "notes.txt").write_text("junk")
    with pytest.warns(LeftOutWarning, match=r"2 files were left out: 2 end in .txt \(.*readme.txt, cat/notes.txt\)"):
        pool = read_folder(str(tmp_path))
    assert (pool.attributes, pool.class_names, pool.domain_names) == (("class",), (("cat", "dog"),), ("all",))
    assert pool.labels.tolist() == [[0], [0], [0], [1], [1]]
    assert pool.domain.tolist() == [0] * 5
    expected = [written[f"{name}.png"] for name in ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1")]
    assert torch.equal(pool.images, torch.stack(expected))
    for junk in (tmp_path / "readme.txt", tmp_path / "cat" / "notes.txt"):
        junk.unlink()
    assert read_folder(tmp_path, size=4, channels=1).images.shape == (5, 1, 4, 4)


@pytest.mark.parametrize("spelling", ["val", "valid", "validation", "VAL"])
def test_splits(tmp_path, write_image, spelling):
    written = plant(tmp_path, write_image, {"train/a": 1, "train/b": 1, "validation/c": 1, "test/d": 2})
    pool = read_folder(tmp_path, split=spelling)
    assert pool.class_names == (("c",),)
    assert torch.equal(pool.images[0], written["validation/c/0.png"])
    assert read_folder(tmp_path, split="test").labels.tolist() == [[0], [0]]


def test_domains_share_classes(tmp_path, write_image):
    written = plant(tmp_path, write_image, {"photo/cat": 1, "photo/dog": 2, "sketch/cat": 1, "sketch/ant": 1})
    pool = read_folder(tmp_path)
    assert pool.class_names == (("ant", "cat", "dog"),)
    assert pool.domain_names == ("photo", "sketch")
    assert pool.labels.flatten().tolist() == [1, 2, 2, 0, 1]
    assert pool.domain.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(pool.images[3], written["sketch/ant/0.png"])


def test_splits_of_domains_and_names_that_only_look_like_splits(tmp_path, write_image):
    plant(tmp_path / "a", write_image, {"train/photo/x": 1, "train/sketch/x": 1, "test/photo/y": 1})
    assert read_folder(tmp_path / "a", split="train").domain_names == ("photo", "sketch")
    plant(tmp_path / "b", write_image, {"train": 1, "test": 2})  # vehicles and exams: classes with images in them
    assert read_folder(tmp_path / "b").class_names == (("test", "train"),)
    plant(tmp_path / "c", write_image, {"train/x": 1, "sketch/x": 2})
    with pytest.warns(LayoutWarning, match=r"\['sketch', 'train'\] are read as domains, and 'train' is"):
        assert read_folder(tmp_path / "c").domain_names == ("sketch", "train")
    assert len(read_folder(tmp_path / "c", split="train")) == 1


def test_splits_beside_others_and_under_other_names(tmp_path, write_image):
    """SVHN's extra, and training and testing: never pooled without a word."""
    plant(tmp_path / "svhn", write_image, {"train/0": 1, "train/1": 1, "test/0": 1, "extra/0": 3})
    plant(tmp_path / "long", write_image, {"training/0": 1, "testing/0": 2, "Dev/0": 3})
    for root, names in ((tmp_path / "svhn", "'extra', 'test', 'train'"), (tmp_path / "long", "'Dev', 'testing', 'tra")):
        with pytest.raises(ValueError, match=rf"has the splits \[{names}.*expected split= one of them"):
            read_folder(root)
        assert folder_has_splits(root)
    sizes = {split: len(read_folder(tmp_path / "svhn", split=split)) for split in ("train", "testing", "extra")}
    assert sizes == {"train": 2, "testing": 1, "extra": 3}
    sizes = {split: len(read_folder(tmp_path / "long", split=split)) for split in ("train", "test", "testing", "val")}
    assert sizes == {"train": 1, "test": 2, "testing": 2, "val": 3}


def test_a_folder_feeds_the_sampler(tmp_path, write_image):
    plant(tmp_path, write_image, {"photo/a": 4, "photo/b": 4, "sketch/a": 4, "sketch/b": 4})
    batch = EpisodeSampler(read_folder(tmp_path), way=2, shot=2, query=2, seed=0).sample(3)
    assert batch.support.images.shape == (3, 4, 3, 6, 6)
    assert torch.equal(batch.route, batch.domain)


def test_refusals(tmp_path, write_image):
    def refused(message: str, root=tmp_path, **options) -> None:
        with pytest.raises(ValueError, match=message):
            read_folder(root, **options)

    refused("nowhere is not there; expected a folder", tmp_path / "nowhere")
    refused("is empty; expected a folder for each class")
    write_image(tmp_path / "loose.png")
    refused("is a file; expected a folder", tmp_path / "loose.png")
    refused("holds images such as loose.png; expected a folder for each class")
    (tmp_path / "loose.png").unlink()
    write_image(tmp_path / "cat" / "0.png")
    (tmp_path / "dog").mkdir()
    refused("class folder .*dog has no images; expected png")
    refused(r"split is 'test', but .* holds \['cat', 'dog'\]", split="test")
    write_image(tmp_path / "dog" / "x" / "0.png")
    refused("dog holds folders but .*cat does not; expected all folders")
    (tmp_path / "cat" / "y").mkdir()
    refused("cat holds images beside folders, such as 0.png")

    deep = tmp_path / "deep"
    write_image(deep / "photo" / "cat" / "more" / "0.png")
    refused("class folder .*cat holds folders such as more", deep)

    splits = tmp_path / "splits"
    write_image(splits / "train" / "cat" / "0.png")
    (splits / "val").mkdir()
    refused(r"has the splits \['train', 'val'\]; expected split=", splits)
    refused(r"split 'tset' fits \[\] of \['train', 'val'\]", splits, split="tset")
    refused("val is empty", splits, split="valid")
    (splits / "valid").mkdir()
    refused(r"split 'val' fits \['val', 'valid'\]", splits, split="val")

    write_image(deep / "photo" / "dog" / "0.png")
    (deep / "photo" / "cat" / "more" / "0.png").rename(deep / "photo" / "cat" / "0.png")
    (deep / "photo" / "cat" / "more").rmdir()
    write_image(deep / "photo" / "dog" / "1.png", size=9)
    refused(r"cat.0.png is 6 x 6 and .*dog.1.png is 9 x 9", deep)
    (deep / "photo" / "dog" / "1.png").write_bytes(b"GIF89a")
    refused("1.png cannot be read as an image", deep, size=4)


def test_everything_that_is_left_out_is_counted_by_reason(tmp_path, write_image):
    plant(tmp_path, write_image, {"cat": 2, "dog": 2})
    for i in range(5):
        (tmp_path / "cat" / f"{i}.heic").write_bytes(b"....ftypheic")
        os.symlink("/nowhere/x.png", tmp_path / "dog" / f"gone{i}.png")
    (tmp_path / "dog" / "LICENSE").write_text("free")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "0.bak")
    with pytest.warns(LeftOutWarning) as said:
        assert len(read_folder(tmp_path)) == 4
    (warning,) = [str(w.message) for w in said]
    for part in (
        "13 files were left out: ",
        "5 end in .heic (cat/0.heic, cat/1.heic, cat/2.heic, ...)",
        "5 are dangling links (dog/gone0.png, ",
        "1 end in .bak though they look like images (cat/0.bak)",
        "1 have no suffix and are no images (dog/LICENSE)",
        "1 are no regular files (dog/pipe.png)",
    ):
        assert part in warning
    for path in (tmp_path / "cat").glob("*.png"):
        path.unlink()
    (tmp_path / "cat" / "0.bak").unlink()
    with pytest.raises(ValueError, match=r"class folder .*cat has no images; expected png.*\(5 files were left out"):
        read_folder(tmp_path)


def test_names_in_either_unicode_form_are_one_class(tmp_path, write_image):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert composed != apart
    plant(tmp_path, write_image, {f"photo/{composed}": 1, "photo/dog": 1, f"sketch/{apart}": 2})
    pool = read_folder(tmp_path)
    assert pool.class_names == ((composed, "dog"),)
    assert pool.labels.flatten().tolist() == [0, 1, 0, 0]
    (tmp_path / "sketch" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(ValueError, match=r"the name 'caf.*' in .*sketch' is not valid UTF-8; rename it"):
        read_folder(tmp_path)


def test_the_same_image_twice_is_reported(tmp_path, write_image):
    plant(tmp_path, write_image, {"cat": 3, "dog": 2})
    read_folder(tmp_path)
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "again.png")
    shutil.copy(tmp_path / "cat" / "1.png", tmp_path / "dog" / "wrong.png")
    with pytest.warns(DuplicateWarning) as said:
        pool = read_folder(tmp_path)
    text = str(said[0].message)
    assert "2 of 7 images are there already" in text
    assert "cat/again.png is cat/0.png, dog/wrong.png is cat/1.png" in text
    assert "1 of them have another label" in text
    assert same_images(pool.images).tolist() == [0, 1, 2, 0, 4, 5, 1]


def test_too_large_an_image_of_a_folder_is_named(tmp_path, write_image):
    plant(tmp_path, write_image, {"cat": 1})
    with pytest.raises(ValueError, match=r"cat.0.png .*6 x 6 = 36 pixels; expected at most 35"):
        read_folder(tmp_path, max_pixels=35)


def test_domains_with_classes_of_their_own_are_written_and_read(tmp_path):
    images = torch.arange(12 * 3 * 4 * 4).remainder(256).byte().view(12, 3, 4, 4)
    labels, domain = torch.arange(12) // 3, torch.arange(12) // 6
    pool = ImagePool(images, labels.unsqueeze(1), ("class",), (("a", "b", "c", "d"),), domain, ("first", "second"))
    read = read_folder(write_folder(pool, tmp_path), channels=3)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*")} == {
        "first/a",
        "first/b",
        "second/c",
        "second/d",
    }
    assert read.domain_names == ("first", "second")
    found = sorted(
        (read.domain_names[d], read.class_names[0][k]) for d, k in zip(read.domain, read.labels[:, 0], strict=True)
    )
    wanted = sorted((pool.domain_names[d], pool.class_names[0][k]) for d, k in zip(domain, labels, strict=True))
    assert found == wanted
