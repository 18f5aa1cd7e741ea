"""Parts: what came of consecutive tasks as one Parquet file each, whole or not there.

``parts/part-000012-<digest>.parquet``: the digest is the start of the SHA-256 of the file's bytes, so that a damaged
file is known by its name. The same tasks routed again are the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_smat.files import write_atomically

PARTS = "parts"
_NAME = re.compile(r"part-(?P<number>\d{6,})-(?P<digest>[0-9a-f]{32})\.parquet")


def parquet() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        ValueError: when pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("Parquet files need the package pyarrow: pip install 'pyro-smat[parquet]'") from error
    return pyarrow, pyarrow.parquet


def schema(probabilities: bool) -> Any:
    """The columns of a part; those of a task that failed are null but for task and failure.

    task, failure (why it could not be routed), predictions (a label for each query, in the order of the tasks' images),
    [classes, probabilities (a list for each query)], weights (of the sources), uncertainty (null where no decision
    reads it), risk, reliable, falls_back, queries (how many), repeated (queries whose pixels are in the support),
    labelled (queries of known class), and over these error, brier (half of the Brier score) and nll (in nats, at most
    27.6).
    """
    arrow, _ = parquet()
    numbers, texts = arrow.list_(arrow.float32()), arrow.list_(arrow.string())
    more = [("classes", texts), ("probabilities", arrow.list_(numbers))] if probabilities else []
    return arrow.schema(
        [
            ("task", arrow.string()),
            ("failure", arrow.string()),
            ("predictions", texts),
            *more,
            ("weights", numbers),
            *((name, arrow.float64()) for name in ("uncertainty", "risk")),
            *((name, arrow.bool_()) for name in ("reliable", "falls_back")),
            *((name, arrow.int32()) for name in ("queries", "repeated", "labelled")),
            *((name, arrow.float64()) for name in ("error", "brier", "nll")),
        ]
    )


def write_part(
    folder: Path, number: int, rows: Sequence[Mapping[str, Any]], *, sources: Sequence[str], probabilities: bool
) -> Path:
    """Write the rows of a part; whatever was there under its number goes.

    Args:
        folder: of the parts.
        number: of the part.
        rows: one a task, column -> value; columns that are not there are null.
        sources: whose weights the tasks have, kept with the file.
        probabilities: whether rows have them.

    Raises:
        ValueError: when the folder cannot be written to.
    """
    arrow, files = parquet()
    columns = schema(probabilities).with_metadata({"sources": "\n".join(sources)})
    stream = arrow.BufferOutputStream()
    files.write_table(arrow.Table.from_pylist(list(rows), schema=columns), stream)
    content = stream.getvalue().to_pybytes()
    path = folder / f"part-{number:06d}-{_digest(content)}.parquet"
    write_atomically(path, content)
    for other in folder.glob(f"part-{number:06d}-*.parquet"):
        if other != path:
            other.unlink()
    return path


def whole_parts(folder: Path) -> dict[int, Path]:
    """Number -> file of the parts that are there and whole; damaged ones count as not there."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        name = _NAME.fullmatch(path.name)
        if name and _digest(path.read_bytes()) == name["digest"]:
            found[int(name["number"])] = path
    return found


def read_columns(paths: Sequence[Path], names: Sequence[str]) -> Any:
    """Columns of parts as one Arrow table, in the order of the files."""
    arrow, files = parquet()
    return arrow.concat_tables([files.read_table(path, columns=list(names)) for path in paths])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
