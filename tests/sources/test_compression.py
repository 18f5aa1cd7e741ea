"""Compressed sources: lossless means bit for bit, tolerances are kept, the wrong base is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sources import WatchedCheckpoint, network, same_bits
from torch import Tensor, nn

from pyro_smat.sources import SourceLibrary, compress, load_weights, open_checkpoint
from pyro_smat.sources.codecs import CODECS
from pyro_smat.sources.compressed import CompressedCheckpoint

LOSSY = [name for name, codec in CODECS.items() if not codec.lossless]
State = dict[str, Tensor]


def base_state() -> State:
    """Large enough for codecs to pay: a convolution, a matrix, vectors, integers."""
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(16, 8, 3, 3, generator=generator),
        "fc.weight": torch.randn(40, 60, generator=generator),
        "fc.bias": torch.randn(40, generator=generator),
        "bn.num_batches_tracked": torch.tensor(5),
    }


def tuned(kind: str, seed: int = 1) -> State:
    """The base after fine-tuning: "sparse", "low_rank" (rank 2), "dense", or "same"."""
    state, generator = base_state(), torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or kind == "same":
            continue
        noise = 0.1 * torch.randn(tensor.shape, generator=generator)
        if kind == "sparse":
            noise *= torch.rand(tensor.shape, generator=generator) < 0.1
        elif kind == "low_rank" and tensor.ndim > 1:
            rows, columns = tensor.flatten(1).shape
            left, right = (torch.randn(shape, generator=generator) for shape in ((rows, 2), (2, columns)))
            noise = 0.1 * (left @ right).view(tensor.shape)
        state[name] = tensor + noise
    if kind != "same":
        state["bn.num_batches_tracked"] = torch.tensor(9)
    return state


def read_back(path: Path, base: State | None) -> State:
    checkpoint = open_checkpoint(path, None if base is None else open_checkpoint(base))
    return {name: checkpoint.read(name) for name in checkpoint.names}


def bitwise(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and np.array_equal(
            a[k].reshape(-1).view(torch.uint8).numpy(), b[k].reshape(-1).contiguous().view(torch.uint8).numpy()
        )
        for k in a
    )


def relative_error(found: State, state: State, base: State | None) -> float:
    """By numpy, in float64, over the floating-point tensors."""
    lost = whole = 0.0
    for name in (name for name, tensor in state.items() if tensor.is_floating_point()):
        a, b = (t[name].double().numpy() for t in (found, state))
        zero = 0.0 if base is None else base[name].double().numpy()
        lost, whole = lost + ((a - b) ** 2).sum(), whole + ((b - zero) ** 2).sum()
    return math.sqrt(lost / whole)


@pytest.mark.parametrize("codec", ["sparse", "auto"])
@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense", "same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_lossless_forms_are_lossless_bit_for_bit(tmp_path: Path, codec: str, kind: str, dtype: torch.dtype) -> None:
    base, state = (
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()} for s in (base_state(), tuned(kind))
    )
    state["fc.bias"][:5] = torch.tensor([-0.0, 0.0, 1e-44, -1e-40, 1.0]).to(dtype)
    base["fc.bias"][:5] = torch.tensor([0.0, -0.0, 0.0, -1e-40, 1.0]).to(dtype)
    result = compress(state, tmp_path / "c.safetensors", base, codec)
    assert result.lossless
    assert (result.relative_error, result.max_error) == (0.0, 0.0)
    assert bitwise(read_back(tmp_path / "c.safetensors", base), state)


def test_one_hot_through_every_lossless_form_is_the_source(tmp_path: Path) -> None:
    pre, module = network(0), network(1)
    files = {"pre": tmp_path / "pre.safetensors", "whole": tmp_path / "whole.safetensors"}
    save_file(pre.state_dict(), files["pre"])
    sparse = {k: v.clone() for k, v in pre.state_dict().items()}
    sparse["3.weight"][0, 2], sparse["0.bias"][1], sparse["1.running_mean"][0] = -0.0, 7.0, 0.25
    sources = {"whole": dict(module.state_dict()), "few": sparse, "same": dict(pre.state_dict())}
    save_file(sources["whole"], files["whole"])
    for name, state in sources.items():
        for codec in ("sparse", "auto"):
            files[f"{name} {codec}"] = tmp_path / f"{name}-{codec}.safetensors"
            assert compress(state, files[f"{name} {codec}"], files["pre"], codec).lossless
    library = SourceLibrary.from_files(network(9), files)
    for name in files:
        if name == "pre":
            continue
        state = sources[name.split()[0]]
        found = library.space.unflatten(library.compose(library.one_hot(name)))
        assert all(same_bits(found[n], state[n]) for n in library.space.names)
    mixed = library.compose(torch.full((len(library),), 1 / len(library)))
    torch.testing.assert_close(mixed, library.basis.mean(0))
    assert library.stored_bytes["same sparse"] == files["same sparse"].stat().st_size


@pytest.mark.parametrize("codec", [*LOSSY, "auto"])
@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense"])
@pytest.mark.parametrize("tolerance", [0.2, 0.02, 1e-4])
def test_the_error_is_measured_and_within_the_tolerance(
    tmp_path: Path, codec: str, kind: str, tolerance: float
) -> None:
    base, state, path = base_state(), tuned(kind), tmp_path / "c.safetensors"
    result = compress(state, path, base, codec, tolerance)
    found = read_back(path, base)
    error = relative_error(found, state, base)
    assert error <= tolerance
    assert error == pytest.approx(result.relative_error, rel=1e-6, abs=1e-12)
    largest = max(float((found[n].double() - state[n].double()).abs().max()) for n in state)
    assert largest == pytest.approx(result.max_error, rel=1e-6, abs=1e-12)
    assert result.lossless == bitwise(found, state)
    assert result.bytes_after == path.stat().st_size
    assert result.bytes_before == open_checkpoint(state).stored_bytes
    assert result.ratio == result.bytes_before / result.bytes_after
    for name in state:  # each tensor by itself, too
        if state[name].is_floating_point():
            assert relative_error({name: found[name]}, {name: state[name]}, {name: base[name]}) <= tolerance
    assert torch.equal(found["bn.num_batches_tracked"], state["bn.num_batches_tracked"])


def parts_of(path: Path, name: str) -> dict[str, Tensor]:
    return {key.rpartition("|")[2]: part for key, part in load_file(path).items() if key.startswith(f"{name}|")}


def test_sparse_stores_the_entries_that_differ(tmp_path: Path) -> None:
    base, state, path = base_state(), tuned("sparse"), tmp_path / "c.safetensors"
    compress(state, path, base, "sparse")
    parts = parts_of(path, "fc.weight")
    where = np.flatnonzero(state["fc.weight"].numpy() != base["fc.weight"].numpy())
    assert parts["indices"].dtype == torch.int32
    assert parts["indices"].tolist() == where.tolist()
    assert torch.equal(parts["values"], state["fc.weight"].flatten()[where])
    compress(tuned("same"), path, base, "sparse")
    assert load_file(path).keys() == {"bn.num_batches_tracked|values"}  # integers need no base


def test_truncated_keeps_the_fewest_entries_that_the_tolerance_allows(tmp_path: Path) -> None:
    base, state, path = base_state(), tuned("sparse"), tmp_path / "c.safetensors"
    compress(state, path, base, "truncated", 0.3)
    difference = (state["fc.weight"].double() - base["fc.weight"].double()).flatten().numpy()
    size = np.sort(np.abs(difference))[::-1]
    rest = np.sqrt((size**2)[::-1].cumsum()[::-1])  # of the entries from the k-th largest on
    fewest = int(np.argmax(rest <= 0.3 * np.linalg.norm(difference)))
    parts = parts_of(path, "fc.weight")
    assert len(parts["indices"]) == fewest
    assert set(parts["indices"].tolist()) == set(np.argsort(-np.abs(difference), kind="stable")[:fewest].tolist())


def test_low_rank_finds_the_rank_and_leaves_full_ranks_as_they_are(tmp_path: Path) -> None:
    base, path = base_state(), tmp_path / "c.safetensors"
    result = compress(tuned("low_rank"), path, base, "low_rank", 1e-3)
    assert parts_of(path, "fc.weight")["left"].shape == (40, 2)
    assert parts_of(path, "conv.weight")["right"].shape == (2, 72)
    assert result.codecs == {"low_rank": 2, "dense": 2}
    assert compress(tuned("dense"), path, base, "low_rank", 1e-3).codecs == {"dense": 4}
    singular = np.linalg.svd((tuned("dense")["fc.weight"] - base["fc.weight"]).numpy(), compute_uv=False)
    compress(tuned("dense"), path, base, "low_rank", 0.8)
    rank = parts_of(path, "fc.weight")["left"].shape[1]
    tail = [math.sqrt((singular[r:] ** 2).sum() / (singular**2).sum()) for r in (rank - 1, rank)]
    assert tail[1] <= 0.8 < tail[0]


@pytest.mark.parametrize("codec", ["int8", "int8_delta"])
def test_int8_is_within_half_a_step_of_every_channel(tmp_path: Path, codec: str) -> None:
    base, state, path = base_state(), tuned("dense"), tmp_path / "c.safetensors"
    state["fc.weight"][3] = base["fc.weight"][3] if codec == "int8_delta" else 0.0  # a channel without any step
    result = compress(state, path, base, codec, 0.5)
    found = read_back(path, base)
    assert result.codecs[codec] == 2
    for name in ("conv.weight", "fc.weight"):
        zero = base[name] if codec == "int8_delta" else torch.zeros_like(base[name])
        step = (state[name] - zero).flatten(1).abs().amax(1, keepdim=True) / 127
        assert ((found[name] - state[name]).flatten(1).abs() <= 0.5 * step + 1e-6).all()
        assert parts_of(path, name)["levels"].dtype == torch.int8
    assert torch.equal(found["fc.weight"][3], state["fc.weight"][3])
    assert result.bytes_after < 0.4 * result.bytes_before


def test_int8_alone_needs_no_base_and_its_error_is_of_the_weights(tmp_path: Path) -> None:
    state, path = tuned("dense"), tmp_path / "c.safetensors"
    result = compress(state, path, codec="int8", tolerance=0.01)
    assert relative_error(read_back(path, None), state, None) == pytest.approx(result.relative_error, rel=1e-6)
    assert 0 < result.relative_error < 0.01
    assert load_weights(path).keys() == state.keys()  # any reader of ours opens it
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["form"], metadata["tolerance"], metadata["lossless"]) == ("int8", "0.01", "false")
    assert float(metadata["relative_error"]) == result.relative_error
    assert "base_digest" not in metadata


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "dense", "same"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.05])
def test_auto_is_the_smallest(tmp_path: Path, kind: str, tolerance: float) -> None:
    base, state = base_state(), tuned(kind)
    auto = compress(state, tmp_path / "auto.safetensors", base, "auto", tolerance)
    assert auto.relative_error <= tolerance

    def stored(path: Path) -> int:
        return sum(part.numel() * part.element_size() for part in load_file(path).values())

    for name, codec in CODECS.items():
        if tolerance or codec.lossless:
            compress(state, tmp_path / "one.safetensors", base, name, tolerance)
            assert stored(tmp_path / "auto.safetensors") <= stored(tmp_path / "one.safetensors")


def test_half_precision_sources_come_back_in_half_precision(tmp_path: Path) -> None:
    base = {k: v.half() if v.is_floating_point() else v for k, v in base_state().items()}
    state = {k: v.half() if v.is_floating_point() else v for k, v in tuned("low_rank").items()}
    path = tmp_path / "c.safetensors"
    for codec in [*LOSSY, "auto"]:
        compress(state, path, base, codec, 0.05)
        found = read_back(path, base)
        assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in state.items()}
        assert relative_error(found, state, base) <= 0.05
    # a base in another precision serves the codecs that add
    result = compress(state, path, base_state(), "int8_delta", 0.05)
    assert result.codecs["int8_delta"] == 2
    assert relative_error(read_back(path, base_state()), state, base_state()) <= 0.05


def test_reading_one_tensor_reads_one_of_the_base_and_checks_it_once(tmp_path: Path) -> None:
    base, path = base_state(), tmp_path / "c.safetensors"
    compress(tuned("sparse"), path, base)
    watched = WatchedCheckpoint(base)
    checkpoint = open_checkpoint(path, watched)
    assert watched.reads == []
    assert checkpoint.shape("conv.weight") == (16, 8, 3, 3)
    checkpoint.read("fc.weight")
    assert watched.reads == ["fc.weight"]
    assert watched.alive == 0


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, path = base_state(), tmp_path / "c.safetensors"
    pre = tmp_path / "pre.safetensors"
    save_file(base, pre)
    compress(tuned("sparse"), path, pre)
    with pytest.raises(ValueError, match=r"stores differences to pre.safetensors \(digest \w{32}\); pass .* as base="):
        open_checkpoint(path)
    with pytest.raises(ValueError, match=r"which state dict in memory is not: tensor 'fc.bias' is missing there"):
        open_checkpoint(path, open_checkpoint({k: v for k, v in base.items() if k != "fc.bias"}))
    with pytest.raises(ValueError, match=r"tensor 'fc.weight' is with shape \(60, 40\), expected \(40, 60\)"):
        open_checkpoint(path, open_checkpoint(base | {"fc.weight": base["fc.weight"].T}))
    for changed in (base["fc.weight"] + 1e-7, base["fc.weight"].double(), -(-base["fc.weight"] * 0.0)):
        other = open_checkpoint(path, open_checkpoint(base | {"fc.weight": changed}))
        assert torch.equal(other.read("conv.weight"), tuned("sparse")["conv.weight"])
        with pytest.raises(ValueError, match=r"'fc.weight' is stored relative to a base with digest \w{32}; that of"):
            other.read("fc.weight")


def test_the_base_in_a_library_is_theta_pre_or_another_checkpoint(tmp_path: Path) -> None:
    pre = {k: v.clone() for k, v in network(0).state_dict().items()}
    path = tmp_path / "c.safetensors"
    changed = pre | {"3.weight": pre["3.weight"].clone()}
    changed["3.weight"][1, 2] = 9.0
    compress(changed, path, pre, "sparse")
    library = SourceLibrary.from_files(network(), {"pre": pre, "c": path})
    assert torch.equal(library.basis[1], library.space.flatten(changed))
    alone = SourceLibrary.from_files(network(), {"c": path}, base=pre)
    assert torch.equal(alone.basis[0], library.basis[1])
    assert torch.equal(alone.with_source("again", path, base=pre).basis[1], library.basis[1])
    assert torch.equal(library.without("pre", fallback="c").basis[0], library.basis[1])  # the base stays open
    with pytest.raises(ValueError, match="pass that checkpoint as base="):
        SourceLibrary.from_files(network(), {"c": path})
    wrong = SourceLibrary.from_files(network(), {"other": changed, "c": path})
    with pytest.raises(ValueError, match=r"c\.safetensors: tensor '3\.weight' is stored relative to a base"):
        wrong.compose(torch.tensor([0.5, 0.5]))


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    compress(tuned("dense"), path, base_state(), "int8_delta", 0.1)
    parts, metadata = load_file(path), safe_open(path, "pt").metadata()
    base = open_checkpoint(base_state())

    def rewritten(**changed: str) -> CompressedCheckpoint:
        save_file(parts, path, {**metadata, **changed})
        opened = open_checkpoint(path, base)
        assert isinstance(opened, CompressedCheckpoint)
        return opened

    with pytest.raises(ValueError, match=r"c\.safetensors: format is 'pyro-smat compressed weights 9'; expected"):
        rewritten(format="pyro-smat compressed weights 9")
    for broken in ("{", "{}", '{"fc.weight": {"form": "magic"}}', metadata["tensors"].replace("int8_delta", "magic")):
        with pytest.raises(ValueError, match=r"c\.safetensors: "):
            rewritten(tensors=broken)
    del parts["fc.weight|scales"]
    with pytest.raises(ValueError, match=r"c\.safetensors: not a readable checkpoint \(KeyError"):
        rewritten().read("fc.weight")
    sizes = json.loads(metadata["tensors"])
    sizes["conv.weight"]["shape"] = [16, 8, 9]
    with pytest.raises(ValueError, match=r"tensor 'conv\.weight' is with shape"):
        rewritten(tensors=json.dumps(sizes))


def test_refused_requests(tmp_path: Path) -> None:
    base, state, path = base_state(), tuned("dense"), tmp_path / "c.safetensors"
    pre = tmp_path / "pre.safetensors"
    save_file(base, pre)
    with pytest.raises(ValueError, match="codec is 'zip'; expected one of"):
        compress(state, path, base, "zip")
    for tolerance in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="tolerance is"):
            compress(state, path, base, "auto", tolerance)
    with pytest.raises(ValueError, match="'int8' loses something and tolerance is 0"):
        compress(state, path, base, "int8")
    with pytest.raises(ValueError, match="'low_rank' stores differences; expected the base"):
        compress(state, path, None, "low_rank", 0.1)
    with pytest.raises(ValueError, match=r"c\.pt: expected a name that ends in \.safetensors"):
        compress(state, tmp_path / "c.pt", base)
    for source, reference in ((pre, base), (state, pre)):
        with pytest.raises(ValueError, match="is what is read"):
            compress(source, pre, reference)
    with pytest.raises(ValueError, match="no tensor of state dict in memory is there"):
        compress(state, path, nn.Linear(2, 2))
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"'fc\.bias' holds NaN or infinite weights"):
            compress(state | {"fc.bias": torch.full((40,), broken)}, path, base)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pre.safetensors"]


def test_a_tied_live_network_can_be_compressed(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert compress(module, tmp_path / "c.safetensors").lossless
    assert bitwise(read_back(tmp_path / "c.safetensors", None), dict(module.state_dict()))
