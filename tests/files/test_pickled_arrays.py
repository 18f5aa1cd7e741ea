"""Pickles read without unpickling: what NumPy and Python write comes back, what could run is refused by name."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_smat.files.pickled_arrays import read_pickled_arrays

DATA = {
    "data": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    b"labels": [1, -2, 3**40, 1.5, None, True, "é", b"\x00\xff", (), (1, 2), (1, 2, 3, 4)],
    "scalar": np.int64(7),
    "objects": np.array([b"png", b"longer"], dtype=object),
    "ordered": collections.OrderedDict(a=[1]),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray) and b.dtype == object:
        return a == list(b)
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    return a == b and (type(a) is type(b) or isinstance(b, np.generic))


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_written_is_read(protocol: int) -> None:
    assert same(read_pickled_arrays(io.BytesIO(pickle.dumps(DATA, protocol))), DATA)


def test_pickles_of_python_2() -> None:
    # pickle.dumps({'data': np.array([200, 3], np.uint8), 'labels': [5]}, 2), written by Python 2 with NumPy 1
    raw = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02\x85q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01|"
        b"q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x02\xc8\x03q\x10tq\x11bU\x06labelsq\x12]q\x13K\x05au."
    )
    assert same(read_pickled_arrays(io.BytesIO(raw)), {"data": np.array([200, 3], np.uint8), "labels": [5]})


class Runs:
    def __reduce__(self) -> Any:
        return eval, ("open('/tmp/pyro-smat-was-here', 'w')",)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (pickle.dumps(Runs()), r"names builtins\.eval at byte \d+; .*do not trust"),
        (b"cos\nsystem\n(S'true'\ntR.", r"names os\.system at byte 0"),
        (b"(S'true'\nios\nsystem\n.", "opcode INST"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"Pname\n.", "opcode PERSID"),
        (pickle.dumps(np.array([(1, 2)], dtype="u1,u4")), "arrays of .*expected numbers or text"),
        (pickle.dumps(DATA)[:-30], "not enough data"),
        (b"\x80\x02]q\x00h\x00a.", "inside itself"),
        (b"cnumpy\nndarray\n.", "holds a name"),
        (b"", "exhausted"),
    ],
)
def test_everything_else_is_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_pickled_arrays(tmp_path / "data.pkl")
    assert str(tmp_path / "data.pkl") in str(caught.value)


def test_nested_references_cost_no_more_than_the_file() -> None:
    nested: Any = []
    for _ in range(60):
        nested = [nested, nested]  # 2 ** 60 paths
    found = read_pickled_arrays(io.BytesIO(pickle.dumps(nested)))
    assert found[0] is found[1]
