"""State dicts out of what training tools save, and files that are no checkpoints: opened, or refused by their name."""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_sources import network, same, weights
from torch import Tensor, nn

from pyro_smat.sources import SourceLibrary, check_compatibility, load_weights, open_checkpoint, without_wrappers
from pyro_smat.sources.containers import ENTRIES
from pyro_smat.sources.file_kind import LARGEST_HEADER, LARGEST_INDEX

State = dict[str, Tensor]


def read(source: Any, **options: Any) -> State:
    checkpoint = open_checkpoint(source, **options)
    return {name: checkpoint.read(name) for name in checkpoint.names}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_state_dict_is_taken_out_of_the_usual_containers(tmp_path: Path, entry: str) -> None:
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    content = {entry: weights(1), "epoch": 3, "optimizer": optimiser, "rng": torch.zeros(4), "best": 0.5}
    torch.save(content, tmp_path / "w.ckpt")
    assert same(read(tmp_path / "w.ckpt"), weights(1))
    assert same(read(content), weights(1))  # type: ignore[arg-type]
    nested = {"model": {"state_dict": weights(1)}, "epoch": 3}
    torch.save(nested, tmp_path / "nested.pt")
    assert same(read(tmp_path / "nested.pt"), weights(1))


@pytest.mark.parametrize(("one", "two"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema")])
def test_of_weights_and_their_average_none_is_chosen_silently(tmp_path: Path, one: str, two: str) -> None:
    path = tmp_path / "w.pt"
    torch.save({one: weights(1), two: weights(2), "step": 7}, path)
    with pytest.raises(ValueError, match=rf"w\.pt: holds several state dicts, \['{one}', '{two}'\]; .*entry='{one}'"):
        open_checkpoint(path)
    assert same(read(path, entry=one), weights(1))
    assert same(read(path, entry=two), weights(2))
    with pytest.raises(ValueError, match=r"entry is 'nothing' and the file holds .*'step'"):
        open_checkpoint(path, entry="nothing")
    save_file(weights(1), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="a safetensors file holds one state dict"):
        open_checkpoint(tmp_path / "w.safetensors", entry=one)


def test_a_container_with_a_key_of_its_own_is_named(tmp_path: Path) -> None:
    torch.save({"generator": weights(1), "critic": weights(2)}, tmp_path / "gan.pt")
    with pytest.raises(ValueError, match=r"\['generator', 'critic'\] hold tensors: .*entry='generator'"):
        open_checkpoint(tmp_path / "gan.pt")
    assert same(read(tmp_path / "gan.pt", entry="critic"), weights(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.ones(1)}, "names of its tensors are int such as 0; expected names as text"),
        ({"a": torch.ones(1), "b": "x"}, r"holds dict with the keys \['a', 'b'\], of which 'b' is str"),
        ([torch.zeros(2)], "holds list; expected a state dict"),
        (torch.zeros(2, 3), r"holds one tensor \(2, 3\); expected"),
        ({}, "holds an empty dict"),
        ({"state_dict": {}, "epoch": 1}, r"keys \['state_dict', 'epoch'\]"),
        ({"args": argparse.Namespace(a=1), "state_dict": weights()}, "argparse.Namespace is in it, which only running"),
        ({"best": np.float64(1), "model": weights()}, "numpy._core.multiarray.scalar is in it"),
        ({"w": torch.eye(3).to_sparse()}, "tensor 'w' is sparse_coo; expected dense"),
    ],
)
def test_what_else_is_in_a_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .*{message}"):
        open_checkpoint(tmp_path / "w.pt")


class Extra(nn.Sequential):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_extra_state_of_modules_is_not_weights(tmp_path: Path) -> None:
    module = nn.Sequential(Extra(nn.Linear(2, 3)), nn.Linear(3, 1))
    torch.save(module.state_dict(), tmp_path / "w.pt")
    library = SourceLibrary.from_files(module, {"live": module, "file": tmp_path / "w.pt"})
    assert torch.equal(library.basis[0], library.basis[1])
    assert library.space.dim == 13


# Names with prefixes


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.net.", "encoder."])
def test_a_prefix_before_every_name_is_named_with_the_remedy(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "last.ckpt"
    state = {prefix + name: tensor for name, tensor in weights(1).items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(3)}, "pytorch-lightning_version": "2.5"}, path)
    with pytest.raises(ValueError, match=rf"prefix: {prefix}0.weight .*\n.*without_wrappers\(path, '{prefix}'\)"):
        SourceLibrary.from_files(network(), {"pre": network(), "x": path})
    library = SourceLibrary.from_files(network(), {"pre": network(), "x": without_wrappers(path, prefix)})
    expected = torch.cat([weights(1)[name].flatten() for name in library.space.names])
    assert torch.equal(library.basis[1], expected)
    with pytest.raises(ValueError, match=r"no name begins with 'other\.'"):
        without_wrappers(path, "other.")


@pytest.mark.parametrize("wrapper", ["_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
def test_wrappers_inside_names_are_left_away(wrapper: str) -> None:
    state = {name.replace(".", f".{wrapper}", 1): tensor for name, tensor in weights(1).items()}
    state = {f"{wrapper}module.{name}": tensor for name, tensor in state.items()}
    assert set(without_wrappers(state).names) == {f"module.{name}" for name in weights(1)}
    state = {name.removeprefix(f"{wrapper}module."): tensor for name, tensor in state.items()}
    assert same(read(without_wrappers(state)), weights(1))
    report = check_compatibility(network(), {"x": state})
    assert {f.kind for f in report.sources[0].issues if f.fatal} == {"prefix"}


# Files


def names_of(suffix: str) -> list[str]:
    return [f"w{suffix}", f"W{suffix.upper()}", "blob0a1b", "w.bin", "w.pt", "w.safetensors", "weights of may.v2"]


@pytest.mark.parametrize("name", names_of(".safetensors"))
def test_a_file_is_what_its_content_says(tmp_path: Path, name: str) -> None:
    save_file(weights(1), tmp_path / name)
    assert same(load_weights(tmp_path / name), weights(1))
    assert open_checkpoint(tmp_path / name).format == "safetensors"
    torch.save(weights(2), tmp_path / name)
    assert same(load_weights(tmp_path / name), weights(2))


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("w.pt"))
    elif kind == "npz":
        np.savez(stream, w=np.ones(2))
    elif kind == "npy":
        np.save(stream, np.ones(2))
    elif kind == "zip":
        with zipfile.ZipFile(stream, "w") as packed:
            packed.writestr("weights.safetensors", b"x")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty, 0 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64,
            "it is a Git LFS pointer.*git lfs pull",
        ),
        (b"/annex/objects/SHA256E-s9--" + b"a" * 64, "it is a git-annex pointer.*git annex get"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
        (b"<html>404</html>", "it is a web page"),
        (gzip.compress(b"weights", mtime=0), "it is a gzip archive.*unpack it first"),
        (archive("tar"), "it is a tar archive"),
        (archive("npz"), r"it is a NumPy archive \(.npz\)"),
        (archive("npy"), "it is a NumPy array"),
        (archive("zip"), "it is a zip archive of weights.safetensors"),
        (b"GGUF\x03\x00\x00\x00", "it is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    ],
)
def test_files_that_are_no_checkpoint_are_called_what_they_are(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a readable .*{message}"):
        open_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
def test_a_program_is_not_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="it is a TorchScript program, which holds code"):
        open_checkpoint(tmp_path / "w.pt")


def test_folders_of_one_file_open_and_of_several_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(weights(2), tmp_path / "pytorch_model.bin")
    assert same(load_weights(tmp_path), weights(2))
    save_file(weights(1), tmp_path / "model.safetensors")
    assert same(load_weights(tmp_path), weights(1))
    save_file(weights(1), tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"a folder with 2 files \*\.safetensors, such as adapter"):
        open_checkpoint(tmp_path)


def test_indices_of_other_shards_and_of_paths_are_refused(tmp_path: Path) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model-1.bin"}}))
    with pytest.raises(
        ValueError, match=r"index of shards such as pytorch_model-1.bin; expected shards in safetensors"
    ):
        open_checkpoint(index)
    (tmp_path / "inside").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    for outside in ("../w.safetensors", str(tmp_path / "w.safetensors")):
        index = tmp_path / "inside" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": outside}}))
        with pytest.raises(ValueError, match="is not beside the index; expected names of files"):
            open_checkpoint(index)


# Absurd sizes


@pytest.mark.parametrize("claimed", [LARGEST_HEADER + 1, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_is_refused_before_memory_is_taken(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", claimed) + b"{")
        file.truncate(min(claimed + 8, 2**33))  # a hole
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"w\.safetensors: .*header claims {claimed:,} bytes"):
        open_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [[2**62], [2**32, 2**32], [-1], [1.5], [2**70]])
def test_an_absurd_shape_in_a_header_is_refused(tmp_path: Path, shape: list[float]) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ValueError, match=r"w\.safetensors: not a readable safetensors file"):
        open_checkpoint(path)


def test_an_absurd_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(2**36)
    with pytest.raises(ValueError, match=rf"68,719,476,736 bytes; expected an index of at most {LARGEST_INDEX:,}"):
        open_checkpoint(path)
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(ValueError, match=r"index\.json: not a readable checkpoint"):
        open_checkpoint(path)


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    state = weights(1)
    state["3.bias"][1] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: tensor '3.bias' holds NaN"):
        load_weights(tmp_path / "w.safetensors")


# Live networks


def forward_in_training_mode(module: nn.Module) -> None:
    module.train()
    module(5 * torch.randn(8, 1, 4, 4) + 3)


def average_by_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.9)


def numpy_view(module: nn.Module) -> None:
    module[3].bias.detach().numpy()[:] = 7  # type: ignore[index]


def one_bit(module: nn.Module) -> None:
    module[0].weight.detach().view(-1).view(torch.uint8).numpy()[0] ^= 1  # type: ignore[index, operator]


def swapped(module: nn.Module) -> None:
    """The sum stays, and so does the set of values."""
    module[3].weight.detach().numpy()[:, :2] = module[3].weight.detach().numpy()[:, [1, 0]]  # type: ignore[index]


@pytest.mark.parametrize("change", [forward_in_training_mode, average_by_data, numpy_view, one_bit, swapped])
def test_any_change_of_a_live_network_is_noticed(change: Any) -> None:
    module = network(1)
    library = SourceLibrary.from_files(module, {"live": module, "other": copy.deepcopy(module)})
    library.compose(library.one_hot("live"))
    change(module)
    library.compose(library.one_hot("other"))
    with pytest.raises(ValueError, match=r"was changed in place since the source was opened.*deepcopy"):
        library.compose(library.one_hot("live"))


# Constant buffers


class Masked(nn.Module):
    def __init__(self, value: float = -torch.inf, size: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.register_buffer("mask", torch.full((size, size), value).triu(1))


@pytest.mark.parametrize("blocks", [None, {"all of it": "linear.*"}])
def test_an_infinite_buffer_is_a_constant_of_the_network(tmp_path: Path, blocks: dict[str, str] | None) -> None:
    module = Masked()
    torch.save(Masked().state_dict(), tmp_path / "w.pt")
    sources = {"a": module, "b": tmp_path / "w.pt", "c": {k: v for k, v in module.state_dict().items() if k != "mask"}}
    report = check_compatibility(module, sources, values=True)
    assert report.fits
    assert report.template.tensors.keys() == {"linear.weight", "linear.bias"}
    library = SourceLibrary.from_files(module, sources, blocks)
    assert library.space.names == ("linear.weight", "linear.bias")
    theta = library.compose(torch.tensor([0.5, 0.25, 0.25]))
    assert theta.isfinite().all()
    assert theta.shape == (12,)
    assert module.mask[0, 1] == -torch.inf


@pytest.mark.parametrize(
    "other", [Masked(-1e4), Masked(torch.inf), {**Masked().state_dict(), "mask": torch.zeros(4, 4)}]
)
def test_inspecting_and_loading_agree_on_a_constant_that_differs(other: Any) -> None:
    sources = {"a": Masked(), "b": other}
    report = check_compatibility(Masked(), sources)
    assert [f.kind for f in report.sources[1].issues] == ["constant"]
    assert not report.fits
    with pytest.raises(ValueError, match=r"constant: mask .*\n.*leave the buffer out \(head=\)"):
        SourceLibrary.from_files(Masked(), sources)
    assert SourceLibrary.from_files(Masked(), sources, head=("mask",)).space.dim == 12


def test_finite_buffers_are_mixed_as_ever_and_nan_is_no_constant() -> None:
    assert SourceLibrary.from_files(Masked(-1e4), {"a": Masked(-1e4)}).space.dim == 21
    broken = Masked(torch.nan)
    with pytest.raises(ValueError, match=r"not finite: mask holds NaN .*head="):
        _ = SourceLibrary.from_files(broken, {"a": broken}).basis
