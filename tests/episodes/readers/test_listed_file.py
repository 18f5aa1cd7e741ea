"""Files that tables list: below their root unless that is allowed, through links, in either Unicode form."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pyro_smat.episodes.readers.listed_file import listed_file
from pyro_smat.episodes.readers.table import read_csv, read_pool


@pytest.mark.parametrize(
    "listed", ["../secret.png", "{tmp}/secret.png", "a/../../secret.png", "linked/../../secret.png"]
)
def test_files_outside_of_the_root_are_refused(tmp_path, write_image, listed):
    write_image(tmp_path / "secret.png", 1)
    (tmp_path / "root" / "a").mkdir(parents=True)
    os.symlink(tmp_path / "root" / "a", tmp_path / "root" / "linked")
    table_file = tmp_path / "root" / "list.csv"
    table_file.write_text(f"path,label\n{listed.format(tmp=tmp_path)},x\n")
    with pytest.raises(
        ValueError, match=r"list.csv, line 2: '.*secret.png' is outside of .*root; .*allow_outside=True"
    ):
        read_pool(table_file)
    if "linked" not in listed:
        assert len(read_pool(table_file, allow_outside=True)) == 1
        assert len(read_csv(table_file, root=table_file.parent, allow_outside=True)) == 1


def test_links_below_the_root_may_lead_elsewhere(tmp_path, write_image):
    """Whoever lists files cannot make links: a data set of links is the owner's."""
    write_image(tmp_path / "store" / "0.png", 1)
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "root" / "pictures")
    (tmp_path / "root" / "list.csv").write_text("path,label\npictures/0.png,x\n")
    assert len(read_csv(tmp_path / "root" / "list.csv")) == 1


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_file_is_found_whatever_form_its_folders_have(tmp_path: Path, form: str) -> None:
    names = [unicodedata.normalize(form, name) for name in ("\u00fcbung", "caf\u00e9.png")]
    (tmp_path / names[0]).mkdir()
    file = tmp_path.joinpath(*names)
    file.touch()
    for listed in ("NFC", "NFD"):
        found = listed_file(tmp_path, unicodedata.normalize(listed, "\u00fcbung/caf\u00e9.png"), "line 2", False)
        assert found.samefile(file)


def test_what_is_no_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "link")
    for listed, what in (("folder", "is a folder"), ("link", "is a dangling link"), ("absent", "is not there")):
        with pytest.raises(ValueError, match=rf"^line 7: .*{listed} {what}; expected an image file"):
            listed_file(tmp_path, listed, "line 7", False)
