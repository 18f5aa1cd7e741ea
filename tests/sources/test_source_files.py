"""Checkpoints: what opens, lazily, and what is refused and how."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import struct
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_sources import network, same, weights
from torch import Tensor, nn

from pyro_smat.sources import files, load_weights, open_checkpoint, without_wrappers
from pyro_smat.sources.files import SafetensorsFile


def save_shards(folder: Path, state: dict[str, Tensor], count: int = 3) -> Path:
    """The layout of Hugging Face: ``count`` shards and an index."""
    files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {name: files[i % count] for i, name in enumerate(state)}
    for file in files:
        save_file({name: tensor for name, tensor in state.items() if where[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def save_as(kind: str, state: dict[str, Tensor], folder: Path) -> Path:
    if kind == "shards":
        return save_shards(folder, state)
    if kind == "folder of shards":
        return save_shards(folder, state).parent
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth" if "pth" in kind else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": state, "epoch": 3} if "wrapped" in kind else state,
            path,
            _use_new_zipfile_serialization=kind != "old .pt",
        )
    return path


FORMATS = ["safetensors", "zip .pt", "old .pt", "wrapped .pth", "shards", "folder of shards"]


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_open_from_every_format(tmp_path: Path, kind: str) -> None:
    state = weights(1)
    state["half"], state["scalar"], state["none"] = torch.ones(3).half(), torch.tensor(2.0), torch.zeros(0, 3)
    path = save_as(kind, state, tmp_path)
    assert same(load_weights(path), state)
    checkpoint = open_checkpoint(str(path))
    assert set(checkpoint.names) == set(state)
    for name, tensor in state.items():
        assert checkpoint.shape(name) == tensor.shape
        assert checkpoint.dtype(name) == tensor.dtype
    parts = [path] if path.is_file() and kind != "shards" else list(tmp_path.iterdir())
    assert checkpoint.stored_bytes == sum(part.stat().st_size for part in parts)


@pytest.mark.parametrize("kind", FORMATS)
def test_opened_checkpoints_can_be_copied_and_sent_to_another_process(tmp_path: Path, kind: str) -> None:
    state = weights(1)
    checkpoint = open_checkpoint(save_as(kind, state, tmp_path))
    checkpoint.read("0.weight")
    for twin in (copy.deepcopy(checkpoint), pickle.loads(pickle.dumps(checkpoint))):
        assert same({name: twin.read(name) for name in twin.names}, state)


def resident() -> int:
    """Bytes of memory that this process holds, without pages of files."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_file_of_gigabytes_opens_without_being_read(tmp_path: Path) -> None:
    size = 4 * 2**30
    header = json.dumps(
        {
            "large": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
            "small": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
        }
    ).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:  # a hole: 4 GiB that take no room on the disk
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(size, os.SEEK_CUR)
        file.write(struct.pack("<2f", 1.0, 2.0))
    before = resident()
    checkpoint = open_checkpoint(path)
    assert checkpoint.shape("large") == (2**30,)
    assert checkpoint.read("small").tolist() == [1.0, 2.0]
    assert checkpoint.stored_bytes > size
    assert resident() - before < 2**27


def test_one_shard_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: weakref.WeakSet[SafetensorsFile] = weakref.WeakSet()
    most = 0

    class Watched(SafetensorsFile):
        def __init__(self, path: str | Path) -> None:
            nonlocal most
            super().__init__(path)
            opened.add(self)
            most = max(most, len(opened))

    index = save_shards(tmp_path, weights(1), count=4)
    monkeypatch.setattr(files, "SafetensorsFile", Watched)
    checkpoint = open_checkpoint(index)
    for name in checkpoint.names:
        checkpoint.read(name)
        assert len(opened) == 1
    assert most == 1


def test_live_networks_and_state_dicts_are_read_where_they_are() -> None:
    module = network(3)
    for source in (module, module.state_dict()):
        checkpoint = open_checkpoint(source)
        assert same({name: checkpoint.read(name) for name in checkpoint.names}, weights(3))
        assert checkpoint.read("3.weight").data_ptr() == module[3].weight.data_ptr()
        assert checkpoint.stored_bytes == sum(t.numel() * t.element_size() for t in weights().values())
    assert open_checkpoint(checkpoint) is checkpoint


def test_a_live_network_that_is_trained_after_opening_is_refused() -> None:
    module = network(3)
    checkpoint = open_checkpoint(module)
    with torch.no_grad():
        module[3].weight.mul_(2.0)
    checkpoint.read("3.bias")
    with pytest.raises(ValueError, match=r"Sequential in memory: tensor '3.weight' was changed in place .*deepcopy"):
        checkpoint.read("3.weight")


@pytest.mark.parametrize("kind", ["safetensors", "zip .pt", "shards"])
def test_a_file_that_is_rewritten_after_opening_is_refused(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(save_as(kind, weights(1), tmp_path))
    for file in tmp_path.iterdir():
        os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match=r"was written to since it was opened"):
        checkpoint.read("0.weight")
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"was written to since it was opened"):
        checkpoint.read("0.weight")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_can_be_left_away(prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in weights(1).items()}
    checkpoint = without_wrappers(state)
    assert same({name: checkpoint.read(name) for name in checkpoint.names}, weights(1))
    assert checkpoint.shape("3.bias") == (3,)
    assert checkpoint.dtype("1.num_batches_tracked") == torch.int64
    assert checkpoint.stored_bytes == open_checkpoint(state).stored_bytes
    with pytest.raises(ValueError, match=r"3.bias.* with and without a prefix"):
        without_wrappers({**state, "3.bias": torch.zeros(3)})


def test_a_compiled_part_of_a_network_has_its_own_names() -> None:
    state = {"stem._orig_mod.0.weight": torch.zeros(1), "head.module.bias": torch.zeros(2)}
    assert without_wrappers(state).names == ("stem.0.weight", "head.module.bias")


class Payload:
    """Pickles to a call that leaves a trace when anything unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.safetensors", "evil.bin"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str, raw: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    if raw:
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save({"weight": torch.zeros(2), "object": Payload(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.\w+: .*expected"):
        load_weights(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload does work
    assert trace.exists()


@pytest.mark.parametrize("content", [{"a": 1.0}, [torch.zeros(2)], {}, torch.zeros(3), {"a": torch.zeros(2), "b": "x"}])
def test_a_file_of_something_else_than_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: .*expected"):
        load_weights(tmp_path / "w.pt")


def test_an_empty_safetensors_file_and_dicts_of_other_things_are_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: holds no tensors"):
        open_checkpoint(tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"state dict in memory: holds dict with the keys \['a'\]; expected a state dict"
    ):
        open_checkpoint({"a": 1.0})  # type: ignore[dict-item]


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt: no such file"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="no such file; it is a folder with 0 files"):
        load_weights(tmp_path)


def test_broken_indices_and_shards_are_named(tmp_path: Path) -> None:
    index = save_shards(tmp_path, weights(1))
    content = json.loads(index.read_text())
    shard = tmp_path / content["weight_map"]["3.bias"]
    content["weight_map"]["ghost"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"index\.json: shard {shard.name} has no tensors \['ghost'\]"):
        open_checkpoint(index)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"{shard.name}: not a readable safetensors file"):
        open_checkpoint(index)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"shards \['{shard.name}'\] are missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="folder with 2 files"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='has no "weight_map"'):
        open_checkpoint(tmp_path / "other.safetensors.index.json")
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: not a readable checkpoint \(JSONDecodeError"):
        open_checkpoint(index)


def test_truncated_safetensors_at_every_length(tmp_path: Path) -> None:
    save_file({"w": torch.arange(6.0)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors: not a readable safetensors file"):
            load_weights(path)


def test_damaged_files_raise_nothing_but_value_errors(tmp_path: Path) -> None:
    state = nn.Linear(3, 3).state_dict()
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    wholes = [(tmp_path / name).read_bytes() for name in ("new.pt", "old.pt")]
    rng = random.Random(0)
    path, refused = tmp_path / "damaged.pt", 0
    for _ in range(400):
        content = bytearray(rng.choice(wholes))
        kind = rng.randrange(3)
        if kind == 0:
            content = content[: rng.randrange(len(content))]
        elif kind == 1:
            content = bytearray(rng.randrange(256) for _ in range(rng.randrange(40)))
        else:
            for _ in range(3):
                content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            for tensor in load_weights(path).values():
                tensor.sum()  # touches every byte of the map
        except ValueError as error:
            assert "damaged.pt" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200


def test_a_dtype_that_pytorch_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(4, dtype=torch.uint8)}, path)
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"F4"').replace(b"[4]", b"[8]"))
    with pytest.raises(ValueError, match=r"w\.safetensors: (tensor 'w' is stored as F4; expected|not a readable)"):
        open_checkpoint(path)
