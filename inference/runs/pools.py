"""From a config to images: the pool of a split, or of other data."""

from __future__ import annotations

import warnings
from pathlib import Path

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.glyphs import glyph_pool
from pyro_smat.episodes.readers.table import has_splits, read_pool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.registry import find


def build_pool(config: RunConfig, split: str | None, path: Path | None = None) -> ImagePool:
    """The images of a split of the config's data, or of another folder or table.

    Args:
        config: the run.
        split: "train", "validation" and "test" go by the names that the config has for them; where it has none for
            the first two, data without splits is read as a whole. "" or None reads data that has no splits.
        path: of other images than the config's.

    Raises:
        ValueError: for data that is not there, or has no such split.

    Warns:
        UserWarning: when validation is on all images because the data has no splits.
    """
    data = config.data
    named = getattr(data, split) if split in ("train", "validation", "test") and path is None else split
    where = path or data.path
    if named is None and split in ("train", "validation"):
        listed = path is not None or data.kind in ("folder", "csv", "none")  # other kinds name their splits themselves
        whole = listed and where is not None and not has_splits(where)
        named = None if whole else split
        if whole and split == "validation":
            _warn_of_no_splits(where)
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


def _warn_of_no_splits(where: Path | None) -> None:
    warnings.warn(
        f"{where} has no splits, so training and validation see the same images: what is chosen on validation "
        "episodes (temperature, threshold, the monitor's scores) looks better than it is. Expected a column split, or "
        'folders train and val; if there are none to be had, say train = "" and validation = "" in [data]',
        stacklevel=3,
    )
