"""Checkpoints: nested states come back as they were, and a file is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pyro_smat.inference.training import checkpoint
from pyro_smat.inference.training.checkpoint import (
    load_state,
    random_state,
    save_state,
    set_random_state,
    write_atomically,
)


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


def test_optimizer_and_random_state(tmp_path: Path) -> None:
    """A fresh optimizer that loads the state continues with the same bits."""
    path = tmp_path / "state.safetensors"

    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()

    module, optimizer = make()
    for _ in range(3):
        step(module, optimizer)
    random = random_state(torch.device("cpu"))
    save_state(path, {"m": dict(module.state_dict()), "o": optimizer.state_dict(), "r": random})
    step(module, optimizer)

    other, fresh = make()
    state = load_state(path)
    other.load_state_dict(state["m"])
    fresh.load_state_dict(state["o"])
    set_random_state(state["r"], torch.device("cpu"))
    step(other, fresh)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


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
    save_file({"weight": torch.randn(3)}, path, {"state": header})
    with pytest.raises(ValueError, match=r"foreign.safetensors: .*expected one saved by pyro-smat"):
        load_state(path)


def test_values_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state/inner/1 is a set; expected tensors, numbers, text"):
        save_state(tmp_path / "s", {"inner": [1, {2, 3}]})
    with pytest.raises(ValueError, match=r"state has a key \(1, 2\); expected text or whole numbers"):
        save_state(tmp_path / "s", {(1, 2): 3})  # type: ignore[dict-item]
    assert not (tmp_path / "s").exists()


# --- atomic writing ---------------------------------------------------------------------------------------------------


def test_crash_between_write_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_readers_see_the_old_file_until_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename the new content is complete beside the old file, in the same folder."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    replace = os.replace
    seen: list[bytes] = []

    def watch(source: str, target: Path) -> None:
        assert Path(source).parent == path.parent
        seen.extend([path.read_bytes(), Path(source).read_bytes()])
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", watch)
    write_atomically(path, b"new content")
    assert seen == [b"old", b"new content"]
    assert path.read_bytes() == b"new content"


def test_crash_in_the_middle_of_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(ValueError, match=r"file cannot be written \(No space left on device\); make room"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """Others may read a run folder if the umask says so, although temporary files are private."""
    (tmp_path / "plain").write_bytes(b"x")
    write_atomically(tmp_path / "atomic", b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_are_made_or_refused(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"
    with pytest.raises(ValueError, match=r"file: inside cannot be written .*; make room or choose"):
        write_atomically(tmp_path / "a" / "b" / "file" / "inside", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(
        ValueError, match=r"locked: file cannot be written \(Permission denied\); .*choose another folder"
    ):
        write_atomically(folder / "file", b"x")
