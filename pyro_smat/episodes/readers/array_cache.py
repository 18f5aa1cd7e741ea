"""Array cache: decoded or drawn images as one ``.npz`` file, written atomically and verified when read.

Readers whose images take long to make keep them here. Any number of processes may read and write one file at once.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pyro_smat.files.atomic import remove_leftovers, replacing


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/pyro-smat``, or ``~/.cache/pyro-smat``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro-smat"


def read_cached(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The images of a cache file, or None where there are none of that shape whose digest is right."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            images, digest = stored["images"], stored["digest"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    fits = images.shape == shape and images.dtype == np.uint8
    return images if fits and np.array_equal(digest, _digest(images)) else None


def write_cached(path: Path, images: NDArray[np.uint8]) -> None:
    """Write beside the target and rename, so that a reader sees a whole file or none.

    What killed processes have left half-written in the folder is removed. A folder that cannot be written to is a
    warning: the images are made again next time.
    """
    try:
        with replacing(path) as temporary, temporary.open("xb") as file:
            np.savez(file, images=images, digest=_digest(images))
        remove_leftovers(path.parent)
    except ValueError as error:
        warnings.warn(f"cannot cache images in {path.parent} ({error}); they are made again next time", stacklevel=3)


def _digest(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(images).data).digest(), dtype=np.uint8)
