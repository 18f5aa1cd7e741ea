"""Episodes: folders, tables, data sets and glyphs in; batches of supports and queries out.

A reader in ``readers/`` (:func:`read_folder`, :func:`read_csv`, :func:`read_dataset`, :func:`glyph_pool`) decodes
images once, into an :class:`ImagePool`. An :class:`EpisodeSampler` draws from it; :class:`EpisodeBatch` is what guides
and models take. Corruptions are what goes wrong with an episode while it is drawn.

To add a corruption, write one class in one file in ``corruptions/`` (:mod:`pyro_smat.episodes.corruptions` says how).
To add a reader, write one function in one file in ``readers/`` that returns an :class:`ImagePool`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.labelled import UNKNOWN, Labelled, check_images
from pyro_smat.episodes.pool import ImagePool

if TYPE_CHECKING:
    from pyro_smat.episodes.readers.dataset import read_dataset
    from pyro_smat.episodes.readers.folders import read_folder, write_folder
    from pyro_smat.episodes.readers.glyphs import glyph_pool
    from pyro_smat.episodes.readers.table import read_csv
    from pyro_smat.episodes.sampler import EpisodeSampler
    from pyro_smat.episodes.settings import EpisodeSettings

__all__ = [
    "UNKNOWN",
    "Episode",
    "EpisodeBatch",
    "EpisodeSampler",
    "EpisodeSettings",
    "ImagePool",
    "Labelled",
    "check_images",
    "glyph_pool",
    "read_csv",
    "read_dataset",
    "read_folder",
    "write_folder",
]

_HOMES = {
    "EpisodeSampler": "sampler",
    "EpisodeSettings": "settings",
    "glyph_pool": "readers.glyphs",
    "read_csv": "readers.table",
    "read_dataset": "readers.dataset",
    "read_folder": "readers.folders",
    "write_folder": "readers.folders",
}


def __getattr__(name: str) -> Any:
    """What needs SciPy, Pillow, matplotlib or pydantic loads on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pyro_smat.episodes' has no attribute {name!r}")
    return getattr(import_module(f"pyro_smat.episodes.{_HOMES[name]}"), name)
