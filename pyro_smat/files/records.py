"""Records: JSON files that are written and read back. Each has a format number and a digest of its content.

Plain values go out with both; they come back only when the file is whole and every value has its type. What is wrong is
a ValueError that names the file and, where there is one, the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pyro_smat.files.atomic import write_atomically

LARGEST_JSON = 64 * 2**20  # bytes; a monitor that has followed three million tasks


def content_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their keys and the spaces between them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values, of which one is "format", with their digest.

    Raises:
        ValueError: when the folder cannot be written to.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "record.json"
        >>> write_record(path, {"format": 1, "steps": 3})
        >>> read_record(path, TypeAdapter(dict[str, int]), format=1, writer="the example")
        {'steps': 3}
    """
    write_atomically(path, record_content(values))


def record_content(values: Mapping[str, Any]) -> bytes:
    """Plain values with their digest, as :func:`write_record` writes them."""
    return json.dumps({**values, "digest": content_digest(values)}, indent=2).encode()


def read_json(path: Path, writer: str, largest: int = LARGEST_JSON) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        writer: what writes such files, for messages.
        largest: bytes; a larger file is not read.

    Raises:
        ValueError: for a file that cannot be read, is too large, not UTF-8 or not JSON.
    """
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "no such file"
            raise ValueError(f"{path}: {found}; expected what {writer} wrote")
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"{path}: has {size:,} bytes; expected what {writer} wrote, at most {largest:,}")
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected what {writer} wrote") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); expected what {writer} wrote") from error
    except RecursionError as error:
        raise ValueError(f"{path}: is nested too deeply; expected what {writer} wrote") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); expected what {writer} wrote") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not usable JSON ({error}); expected what {writer} wrote") from error


def read_record[T](path: Path, schema: TypeAdapter[T], *, format: int, writer: str, undigested: int = 0) -> T:
    """What :func:`write_record` wrote, as the schema has it; "format" and "digest" are left out.

    Args:
        path: the file.
        schema: of the other values; types are strict.
        format: the number that is expected.
        writer: what writes such files, for messages.
        undigested: files up to this format have no digest; one without "format" counts as format 1.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    values = read_json(path, writer)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected the table that {writer} wrote")
    digest = values.pop("digest", None)
    found = values.get("format", 1 if digest is None else None)
    if type(found) is not int or not (found == format or 1 <= found <= undigested):
        raise ValueError(
            f"{path}: format is {found!r}; this version reads format {format}: write it again with {writer}"
        )
    if digest is not None or found > undigested:
        expected = content_digest(values)
        if digest != expected:
            raise ValueError(
                f"{path}: its digest is {digest!r:.80} and its content's {expected!r}: it was changed or damaged; "
                f"restore it, or write it again with {writer}"
            )
    values.pop("format", None)
    return validate(path, schema, values)


def validate[T](path: Path, schema: TypeAdapter[T], values: Any) -> T:
    """Plain values as the schema has them; types are strict.

    Raises:
        ValueError: naming file and key.
    """
    try:
        return schema.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The key, what is wrong and what was found."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "the table"
    return f"{key}: {first['msg'].removeprefix('Value error, ')} (found {first['input']!r:.80})"
