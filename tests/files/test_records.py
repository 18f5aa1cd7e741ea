"""Records: what is written comes back; whatever else is in the file is a ValueError that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter

from pyro_smat.files.records import content_digest, read_json, read_record, write_record


class Thing(BaseModel):
    steps: int
    values: tuple[float, ...] = ()


SCHEMA = TypeAdapter(Thing)


def read(path: Path, undigested: int = 0) -> Thing:
    return read_record(path, SCHEMA, format=2, writer="the test", undigested=undigested)


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    write_record(path, {"format": 2, "steps": 3, "values": [0.1, 1e-300, 1e300, float("inf")]})
    assert read(path) == Thing(steps=3, values=(0.1, 1e-300, 1e300, float("inf")))


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    """Spaces and the order of keys do not matter, every value does."""
    path = tmp_path / "thing.json"
    values = {"format": 2, "steps": 3, "values": [0.25]}
    path.write_text(json.dumps({"digest": content_digest(values), **dict(reversed(values.items()))}, indent=7))
    assert read(path) == Thing(steps=3, values=(0.25,))
    path.write_text(path.read_text().replace("0.25", "0.5"))
    with pytest.raises(ValueError, match=r"thing\.json: its digest is .*changed or damaged"):
        read(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2, "steps": "3"}, r"steps: Input should be a valid integer \(found '3'\)"),
        ({"format": 2, "steps": 3, "values": [1, None]}, r"values\.1: .*found None"),
        ({"format": 2}, "steps: Field required"),
        ({"format": 9, "steps": 3}, "format is 9; this version reads format 2"),
        ({"format": True, "steps": 3}, "format is True"),
        ({"steps": 3}, "format is None"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, values: dict[str, object], message: str) -> None:
    write_record(tmp_path / "thing.json", values)
    with pytest.raises(ValueError, match=rf"thing\.json: {message}"):
        read(tmp_path / "thing.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"{} and more", "not valid JSON"),
    ],
)
def test_what_is_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"thing\.json: {message}.*expected what the test wrote"):
        read(path)


def test_sizes_and_kinds_of_files(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 10 * 2**40)  # ten TiB that take no room
    with pytest.raises(ValueError, match=r"huge\.json: has 10,995,116,277,760 bytes; expected .* at most 67,108,864"):
        read_json(path, "the test")
    with pytest.raises(ValueError, match="is a folder"):
        read_json(tmp_path, "the test")
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "none", "the test")


def test_old_formats_without_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    path.write_text('{"steps": 3}')
    assert read(path, undigested=1).steps == 3
    path.write_text('{"format": 2, "steps": 3}')
    with pytest.raises(ValueError, match="its digest is None"):
        read(path, undigested=1)
