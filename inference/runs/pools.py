"""From a config to images: the pool of a split, or of other data."""

from __future__ import annotations

from pathlib import Path

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.glyphs import glyph_pool
from pyro_smat.episodes.readers.table import read_pool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.registry import find


def build_pool(config: RunConfig, split: str | None, path: Path | None = None) -> ImagePool:
    """The images of a split of the config's data, or of another folder or table.

    Args:
        config: the run.
        split: "train", "validation" and "test" go by the names that the config has for them; "" or None reads data that
            has no splits.
        path: of other images than the config's.

    Raises:
        ValueError: for data that is not there, or has no such split.
    """
    data = config.data
    named = getattr(data, split, split) if split in ("train", "validation", "test") and path is None else split
    where = path or data.path
    if path is None and data.kind == "glyphs":
        return glyph_pool(named or "train", size=data.size)
    if where is None:
        raise ValueError("this router was made in Python and has no data of its own; pass --data FOLDER or FILE.csv")
    if path is None and data.kind not in ("folder", "csv", "none"):
        return find("layout", data.kind)(where, named or "train", data.size, data.channels)
    if named and (where / named).is_dir():
        where, named = where / named, None
    return read_pool(
        where, size=data.size, channels=data.channels, split=named or None, allow_outside=data.allow_outside
    )
