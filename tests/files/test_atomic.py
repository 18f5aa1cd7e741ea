"""Atomic writing: a file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyro_smat.files import replacing, write_atomically


def test_what_a_writer_leaves_half_done_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def break_off() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        break_off()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_crash_between_write_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_file_until_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename the new content is complete beside the old file, in the same folder."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    replace = os.replace
    seen: list[bytes] = []

    def watch(source: str, target: Path) -> None:
        assert Path(source).parent == path.parent
        seen.extend([path.read_bytes(), Path(source).read_bytes()])
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_atomically(path, b"new content")
    assert seen == [b"old", b"new content"]
    assert path.read_bytes() == b"new content"


def test_crash_in_the_middle_of_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ValueError, match=r"file cannot be written \(No space left on device\); make room"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """Others may read a run folder if the umask says so, although temporary files are private."""
    (tmp_path / "plain").write_bytes(b"x")
    write_atomically(tmp_path / "atomic", b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_are_made_or_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"
    with pytest.raises(ValueError, match=r"file: inside cannot be written .*; make room or choose"):
        write_atomically(tmp_path / "a" / "b" / "file" / "inside", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(
        ValueError, match=r"locked: file cannot be written \(Permission denied\); .*choose another folder"
    ):
        write_atomically(folder / "file", b"x")
