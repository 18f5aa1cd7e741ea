"""The image cache: whole files or none, spoilt ones refused, several processes at once."""

from __future__ import annotations

import numpy as np
import pytest
from other_process import start_python

from pyro_smat.episodes.readers.array_cache import read_cached, write_cached

SHAPE = (40, 1, 16, 16)


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "deep" / "cache.npz"
    assert read_cached(path, SHAPE) is None
    write_cached(path, images())
    np.testing.assert_array_equal(read_cached(path, SHAPE), images())
    assert [p.name for p in path.parent.iterdir()] == ["cache.npz"]  # nothing temporary is left
    assert read_cached(path, (41, 1, 16, 16)) is None


def test_any_spoilt_byte_of_the_pixels_is_noticed(tmp_path):
    path = tmp_path / "cache.npz"
    write_cached(path, images())
    whole = path.read_bytes()
    start = whole.index(images().tobytes()[:64])
    for at in np.linspace(start, start + images().size - 1, 12).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_cached(path, SHAPE) is None
    path.write_bytes(whole)
    assert read_cached(path, SHAPE) is not None


def test_a_wrong_or_absent_digest_is_noticed(tmp_path):
    """The archive's own checksums are right in both files."""
    path = tmp_path / "cache.npz"
    np.savez(path, images=images())
    assert read_cached(path, SHAPE) is None
    write_cached(tmp_path / "other.npz", images(1))
    with np.load(tmp_path / "other.npz") as other:
        np.savez(path, images=images(0), digest=other["digest"])
    assert read_cached(path, SHAPE) is None


WORKER = """
import sys
from pathlib import Path
import numpy as np
from pyro_smat.episodes.readers.array_cache import read_cached, write_cached
path, seed = Path(sys.argv[1]), int(sys.argv[2])
both = [np.random.default_rng(s).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8) for s in (0, 1)]
for _ in range(25):
    write_cached(path, both[seed])
    found = read_cached(path, (40, 1, 16, 16))
    assert any(np.array_equal(found, one) for one in both)
"""


def test_two_processes_write_and_read_at_once(tmp_path):
    path = tmp_path / "cache.npz"
    workers = [start_python("-c", WORKER, path, seed) for seed in (0, 1)]
    assert [(worker.communicate(timeout=120)[1], worker.returncode) for worker in workers] == [("", 0)] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["cache.npz"]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot cache images in .*file.*made again next time"):
        write_cached(tmp_path / "file" / "cache.npz", images())
