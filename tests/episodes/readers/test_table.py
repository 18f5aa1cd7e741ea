"""CSV tables of images, read back and compared with the pixels that were written."""

from __future__ import annotations

import pytest
import torch

from pyro_smat.episodes.readers.table import read_csv


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
