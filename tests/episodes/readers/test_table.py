"""CSV tables of images, read back and compared with the pixels that were written."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from pyro_smat.episodes.readers import table as tables
from pyro_smat.episodes.readers.duplicates import DuplicateWarning
from pyro_smat.episodes.readers.table import read_csv, read_pool


@pytest.fixture
def images(tmp_path, write_image):
    return {
        f"{i}.png": torch.from_numpy(write_image(tmp_path / "pictures" / f"{i}.png", i)).permute(2, 0, 1)
        for i in range(4)
    }


def table(tmp_path, text: str, **options):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode())
    return read_csv(path, **options)


@pytest.mark.parametrize("header", ["path,label", "filename,label", " Path , LABEL ", "\ufefffilename,label"])
def test_paths_and_labels(tmp_path, images, header):
    pool = table(tmp_path, f"{header}\npictures/2.png,dog\r\n\npictures/0.png, cat \n{tmp_path}/pictures/1.png,dog\n")
    assert pool.class_names == (("cat", "dog"),)
    assert pool.labels.flatten().tolist() == [1, 0, 1]
    assert torch.equal(pool.images, torch.stack([images["2.png"], images["0.png"], images["1.png"]]))
    assert pool.domain_names == ("all",)


def test_root_domains_and_splits(tmp_path, images):
    text = "label,extra,split,domain,filename\na,?,train,x,0.png\nb,?,valid,y,1.png\na,?,validation,x,2.png\n"
    pool = table(tmp_path, text, root=tmp_path / "pictures", split="val")
    assert torch.equal(pool.images, torch.stack([images["1.png"], images["2.png"]]))
    assert (pool.class_names, pool.domain_names) == ((("a", "b"),), ("x", "y"))
    assert (pool.labels.flatten().tolist(), pool.domain.tolist()) == ([1, 0], [1, 0])
    assert len(table(tmp_path, text, root=str(tmp_path / "pictures"), size=3, channels=1)) == 3


@pytest.mark.parametrize(
    ("text", "message", "options"),
    [
        ("", r"has the columns \[\] and lacks \['path', 'label'\]; expected a header with path \(or filename\)", {}),
        ("file,class\n", r"has the columns \['file', 'class'\] and lacks \['path', 'label'\]", {}),
        ("path,label\npictures/0.png,a\n", r"lacks \['split'\]", {"split": "test"}),
        ("path,label\n", "lists no images; expected at least one line after the header", {}),
        ("path,label\npictures/0.png,a\n\npictures/9.png,b\n", "list.csv, line 4: .*9.png is not there", {}),
        ("path,label\npictures/0.png\n", r"line 2 has 1 fields; expected 2: \['path', 'label'\]", {}),
        ("path,label\npictures/0.png,a\npictures/1.png, \n", "line 3 has nothing in column 'label'", {}),
        (
            "path,label,split\npictures/0.png,a,train\n",
            r"of split 'test'; it has the splits \['train'\]",
            {"split": "test"},
        ),
        ("path,label\nlist.csv,a\n", "list.csv cannot be read as an image", {}),
    ],
)
def test_refusals(tmp_path, images, text, message, options):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text, **options)


def test_missing_and_binary_tables(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv is not there; expected a CSV with the columns path, label"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary.csv is not UTF-8 text"):
        read_csv(tmp_path / "binary.csv")


@pytest.mark.parametrize("name", ["list.csv", "TABLE.CSV", "table.txt", "table"])
def test_a_table_and_a_folder_are_told_apart_by_what_they_are(tmp_path, images, name):
    (tmp_path / name).write_text("path,label\npictures/0.png,a\npictures/1.png,b\n")
    assert read_pool(tmp_path / name).class_names == (("a", "b"),)
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    (tmp_path / "pictures").rename(folder / "cat")
    assert read_pool(folder).class_names == (("cat",),)
    with pytest.raises(ValueError, match=r"nothing.csv is not there; expected a folder of class folders, or a CSV"):
        read_pool(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"0.png is an image; expected a CSV"):
        read_pool(folder / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"folder.csv is a folder; expected a CSV"):
        read_csv(folder)


TEXT = "path,label\npictures/0.png,caf\u00e9\npictures/1.png,z\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be with mark"])
def test_encodings_that_say_what_they_are(tmp_path, images, encoding):
    content = b"\xfe\xff" + TEXT.encode("utf-16-be") if "mark" in encoding else TEXT.encode(encoding)
    (tmp_path / "list.csv").write_bytes(content)
    assert read_csv(tmp_path / "list.csv").class_names == (("caf\u00e9", "z"),)


def test_other_encodings_are_named_with_what_they_would_read(tmp_path, images):
    path = tmp_path / "list.csv"
    path.write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"not UTF-8 text: line 2 holds the byte 0xe9; in Latin-1 it reads '.*caf\u00e9'"
    ):
        read_csv(path)
    assert read_csv(path, encoding="latin-1").class_names == (("caf\u00e9", "z"),)
    path.write_bytes(TEXT.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"NUL bytes, as UTF-16 without a byte order mark does|0xe9"):
        read_csv(path)
    with pytest.raises(ValueError, match="encoding is 'klingon'; expected a name"):
        read_csv(path, encoding="klingon")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_paths_and_labels_in_either_unicode_form(tmp_path, write_image, on_disk, listed):
    folder, file = "\u00fcbung", "caf\u00e9.png"
    write_image(tmp_path / unicodedata.normalize(on_disk, folder) / unicodedata.normalize(on_disk, file), 1)
    write_image(tmp_path / "b.png", 2)
    line = unicodedata.normalize(listed, f"{folder}/{file},\u00e9t\u00e9")
    (tmp_path / "list.csv").write_text(f"path,label\n{line}\nb.png,\u00e9t\u00e9\n", encoding="utf-8")
    pool = read_csv(tmp_path / "list.csv")
    assert pool.class_names == (("\u00e9t\u00e9",),)
    assert len(pool) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label\npictures/0.png;a\n", "separated by commas: these are semicolons"),
        ("path\tlabel\npictures/0.png\ta\n", "separated by commas: these are tabs"),
        ("path,label,label\npictures/0.png,a,b\n", r"has the columns \['label'\] twice"),
        ('path,label\npictures/0.png,"a\n', "it is no CSV"),
        ("path,label\npictures/0.png," + "a" * 200_000 + "\n", "it is no CSV .*field limit"),
        ("path,label\npictures,a\n", "line 2: .*pictures is a folder"),
        ("path,label\npic\0tures,a\n", "NUL bytes, as a binary file does"),
    ],
)
def test_tables_that_are_almost_right_are_told_what_is_wrong(tmp_path, images, text, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text)


def test_too_large_a_table_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LARGEST_TABLE", 5)
    with pytest.raises(ValueError, match="has 11 bytes; expected a table of at most 5"):
        table(tmp_path, "path,label\n")


def test_a_line_twice_is_reported(tmp_path, images):
    with pytest.warns(
        DuplicateWarning, match=r"1 of 3 images .* pictures/0.png is pictures/0.png; 1 of them have another"
    ):
        table(tmp_path, "path,label\npictures/0.png,a\npictures/1.png,b\npictures/0.png,b\n")
