"""States: nested values come back as they were, and a damaged file is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pyro_smat.files import load_state, save_state
from pyro_smat.files import state as state_module


def assert_equal(found: object, expected: object) -> None:
    """Same types, same values; tuples come back as lists."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert [(type(k), k) for k in found] == [(type(k), k) for k in expected]
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    else:
        assert type(found) is type(expected)
        assert found == expected or (found != found and expected != expected)


STATES: dict[str, Any] = {
    "flat": {"a": torch.randn(3, 4), "b": 1, "c": "text", "d": None, "e": True, "f": 0.1},
    "nested": {"x": {"y": [torch.arange(3), {"z": torch.zeros(2)}, 5]}, "empty": {}, "nothing": []},
    "integer keys": {"state": {0: {"m": torch.ones(2)}, 1: {"m": torch.zeros(2)}}, "1": "text", 1: "number"},
    "dtypes": {
        str(d): torch.ones(2, 3).to(d)
        for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    },
    "shapes": {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "strided": torch.randn(4, 6).T[::2]},
    "gradient": {"p": torch.nn.Parameter(torch.randn(3))},
    "special floats": {"nan": float("nan"), "inf": float("-inf"), "t": torch.tensor([float("nan"), float("inf")])},
    "long integers": {"state": 2**127 + 12345678901234567890, "inc": -(2**70)},
    "unicode and separators": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "ä.é": torch.ones(2), "": 3},
    "like its own marks": {"__tensor__": "a", "__dict__": [[1, 2]], "state": {"state": torch.ones(1)}},
    "keys of two types": {"d": {1: torch.zeros(1), "1": torch.ones(1)}},
}


@pytest.mark.parametrize("name", STATES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", STATES[name])
    assert_equal(load_state(tmp_path / "state.safetensors"), STATES[name])


def test_shared_tensors_come_back_twice(tmp_path: Path) -> None:
    """Tied weights, views of one storage and a tensor that is saved under two names."""
    whole = torch.arange(6.0)
    state = {"a": whole, "b": whole, "half": whole[:3], "rows": whole.view(2, 3)}
    save_state(tmp_path / "state.safetensors", state)
    found = load_state(tmp_path / "state.safetensors")
    assert_equal(found, state)


def test_saving_leaves_the_state_alone(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    state = {"p": parameter, "d": {"q": [1, (2, 3)]}}
    save_state(tmp_path / "s", state)
    assert state == {"p": parameter, "d": {"q": [1, (2, 3)]}}
    assert parameter.requires_grad


def test_overwriting_replaces_everything(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_state(path, {"a": torch.randn(1000)})
    save_state(path, {"b": 1})
    assert load_state(path) == {"b": 1}
    assert os.listdir(tmp_path) == ["s"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_file(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.randn(500), "b": list(range(50))})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"state.safetensors: not a readable safetensors file .* truncated or foreign"):
        load_state(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.randn(3)}, path)
    with pytest.raises(ValueError, match=r"weights.safetensors: a safetensors file without a 'state' header"):
        load_state(path)
    torch.save({"weight": torch.randn(3)}, path)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_state(path)
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_state(path)
    with pytest.raises(ValueError, match=r"no such file; expected a saved state"):
        load_state(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"no such file; expected a saved state"):
        load_state(tmp_path)


@pytest.mark.parametrize("header", ["not json", '{"__tensor__": "absent"}', '{"odd": 1}', "[1, 2]", '"text"'])
def test_foreign_state_header(header: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    tensors = {"weight": torch.randn(3)}
    save_file(tensors, path, {"state": header, "sha256": state_module._digest(header, tensors)})
    with pytest.raises(ValueError, match=r"foreign.safetensors: .*expected one saved by pyro-smat"):
        load_state(path)


def test_file_without_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"0:state/a": torch.randn(3)}, path, {"state": '{"__dict__": [["a", {"__tensor__": "0:state/a"}]]}'})
    with pytest.raises(ValueError, match=r"old.safetensors: a safetensors file without a 'sha256' header"):
        load_state(path)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    """One bit, anywhere in the file: in the weights, the plain values, the digest, or the format's own header."""
    path = tmp_path / "state.safetensors"
    save_state(
        path, {"step": 7, "half": torch.tensor([1.5], dtype=torch.bfloat16), "w": torch.arange(3.0), "n": [1, 2]}
    )
    whole, expected = path.read_bytes(), load_state(path)
    refusals = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            assert_equal(load_state(path), expected)  # padding of the header
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 0.97 * len(whole)
    assert all(message.startswith(str(path)) for message in refusals)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=r"is damaged: its content has the SHA-256 digest \w{64}, and \w{64} was expected"
    ):
        load_state(path)


def test_values_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state/inner/1 is a set; expected tensors, numbers, text"):
        save_state(tmp_path / "s", {"inner": [1, {2, 3}]})
    with pytest.raises(ValueError, match=r"state has a key \(1, 2\); expected text or whole numbers"):
        save_state(tmp_path / "s", {(1, 2): 3})  # type: ignore[dict-item]
    assert not (tmp_path / "s").exists()
