"""SourceLibrary: rows, blocks and mixtures straight from checkpoints, and how little is read for them."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_sources import WatchedCheckpoint, network, same_bits, weights
from torch import nn

from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary, streaming

BLOCKS = {"body": r"[01]\.", "head": ".*"}


def watched(count: int = 3) -> dict[str, WatchedCheckpoint]:
    return {f"s{r}": WatchedCheckpoint(weights(r)) for r in range(count)}


def test_from_files_makes_rows_in_the_order_of_the_names(tmp_path: Path) -> None:
    modules = {"pre": network(0), "b": network(1), "a": network(2)}
    files = {}
    for name, module in modules.items():
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(module.state_dict(), files[name])
    library = SourceLibrary.from_files(network(9), files)
    assert library.names == ("pre", "b", "a")
    assert len(library) == 3
    assert library.basis.dtype == torch.float32
    assert library.basis is library.basis
    for row, module in zip(library.basis, modules.values(), strict=True):
        state = module.state_dict()
        assert torch.equal(row, torch.cat([state[n].flatten() for n in library.space.names]))
    assert "1.num_batches_tracked" in modules["a"].state_dict()
    assert "1.num_batches_tracked" not in library.space.names
    assert library.stored_bytes == {name: file.stat().st_size for name, file in files.items()}


def test_every_problem_of_every_file_is_listed_in_one_error(tmp_path: Path) -> None:
    first, second = weights(1), weights(2)
    del first["3.bias"]
    first["head.weight"] = torch.zeros(2, 2)
    second["0.weight"] = torch.zeros(2, 3, 3, 3)
    files = {"good": tmp_path / "g.pt", "first": tmp_path / "f.pt", "second": tmp_path / "s.pt"}
    for path, state in zip(files.values(), (weights(), first, second), strict=True):
        torch.save(state, path)
    with pytest.raises(ValueError, match="does not fit Sequential") as caught:
        SourceLibrary.from_files(network(), files)
    message = str(caught.value)
    for part in (
        "source 'first'",
        "f.pt",
        "missing: 3.bias (3,)",
        "extra: head.weight (2, 2)",
        "source 'second'",
        "shape: 0.weight is (2, 3, 3, 3), expected (2, 1, 3, 3)",
    ):
        assert part in message
    assert "'good'" not in message
    assert "another architecture" not in message


def test_a_checkpoint_of_another_architecture_is_called_that() -> None:
    other = OrderedDict(("encoder." + k.replace(".", "_"), v) for k, v in weights().items())
    with pytest.raises(ValueError, match=r"source 'x' .* does not fit Sequential - another architecture"):
        SourceLibrary.from_state_dicts(network(), {"x": other})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named_when_they_are_read(value: float) -> None:
    sources = watched()
    sources["s1"].tensors["1.running_var"][1] = value
    library = SourceLibrary.from_files(network(), sources, BLOCKS)
    assert not sources["s1"].reads
    library.block("head")  # the other block is fine
    closed = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.25, 0.25]])
    library.compose(closed)  # and where the source has no weight it is not looked at
    for ask in (lambda: library.basis, lambda: library.block("body"), lambda: library.compose(torch.ones(2, 3))):
        with pytest.raises(ValueError, match=r"not finite: 1\.running_var .* in source 's1' \(watched\)"):
            ask()
    sources["s1"].tensors["1.running_var"][:] = 3e38  # their sum overflows
    assert library.basis.isfinite().all()


def test_nothing_is_read_before_it_is_asked_for_and_then_one_block() -> None:
    sources = watched()
    library = SourceLibrary.from_files(network(), sources, BLOCKS)
    assert library.stored_bytes == {"s0": 7, "s1": 7, "s2": 7}
    assert not any(source.reads for source in sources.values())
    body = library.block(0)
    assert all(set(s.reads) == {n for n in library.space.names if n[0] in "01"} for s in sources.values())
    assert torch.equal(body, library.basis[:, : body.shape[1]])
    assert torch.equal(library.block("head"), library.basis[:, body.shape[1] :])
    with pytest.raises(ValueError, match=r"block is 2; expected one of \('body', 'head'\)"):
        library.block(2)
    with pytest.raises(ValueError, match="block is 'tail'"):
        library.block("tail")


def test_composing_holds_one_tensor_of_every_source_and_reads_each_once() -> None:
    sources = watched(4)
    library = SourceLibrary.from_files(network(), sources)
    held = []
    read = WatchedCheckpoint.read

    def watch(self: WatchedCheckpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        held.append({source: count.alive for source, count in sources.items()})
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WatchedCheckpoint, "read", watch)
        library.compose(torch.tensor([0.25, 0.5, 0.0, 0.25]))
    assert max(max(counts.values()) for counts in held) == 1
    names = list(library.space.names)
    assert [source.reads for source in sources.values()] == [names, names, [], names]
    assert all(source.alive == 0 for source in sources.values())


@pytest.mark.parametrize("blocks", [None, BLOCKS])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("piece", [3, 2**16])
def test_composing_from_checkpoints_is_composing_with_the_basis(
    monkeypatch: pytest.MonkeyPatch, blocks: dict[str, str] | None, leading: tuple[int, ...], piece: int
) -> None:
    monkeypatch.setattr(streaming, "PIECE", piece)
    library = SourceLibrary.from_files(network(), watched(), blocks)
    generator = torch.Generator().manual_seed(0)
    shape = (*leading, 3) if blocks is None else (*leading, 2, 3)
    coefficients = torch.randn(shape, generator=generator).softmax(-1)
    coefficients[..., 1] = 0.0
    theta = library.compose(coefficients)
    assert library._basis is None
    assert theta.shape == (*leading, library.space.dim)
    torch.testing.assert_close(theta, compose(coefficients, library.basis, library.space), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theta, library.compose(coefficients), rtol=0, atol=0)  # now from the basis
    assert torch.equal(library.compose(torch.zeros(shape)), torch.zeros(*leading, library.space.dim))


def test_one_hot_coefficients_reproduce_a_source_bit_for_bit() -> None:
    sources = {f"s{r}": weights(r) for r in range(3)}
    sources["s1"]["3.weight"][0, :4] = torch.tensor([-0.0, 1e-44, -1e-40, 3.4e38])
    library = SourceLibrary.from_files(network(), sources)
    for name, state in sources.items():
        found = library.space.unflatten(library.compose(library.one_hot(name)))
        assert all(same_bits(found[n], state[n]) for n in library.space.names)
    pasted = SourceLibrary.from_files(network(), sources, BLOCKS)
    coefficients = torch.stack([pasted.one_hot("s2"), pasted.one_hot("s1")])
    found = pasted.space.unflatten(pasted.compose(coefficients))
    assert same_bits(found["3.weight"], sources["s1"]["3.weight"])
    assert same_bits(found["0.weight"], sources["s2"]["0.weight"])


def test_coefficients_that_cannot_be_composed() -> None:
    library = SourceLibrary.from_files(network(), watched(), BLOCKS)
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.ones(3, 3)):
        with pytest.raises(ValueError, match=r"coefficients have shape .* expected \(\*b, 2, 3\)"):
            library.compose(wrong)
    with pytest.raises(ValueError, match="want a gradient"):
        library.compose(torch.ones(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="NaN"):
        library.compose(torch.full((2, 3), torch.nan))


def test_the_head_is_a_constant_of_the_network() -> None:
    module = network(9)
    files = {"pre": weights(0), "more": weights(1, classes=7), "bare": weights(2)}
    files["bare"].pop("3.bias")
    library = SourceLibrary.from_files(module, files, head=("3.*",))
    assert library.space.names == tuple(n for n in ParameterSpace.from_module(module).names if not n.startswith("3."))
    for row, state in zip(library.basis, files.values(), strict=True):
        assert torch.equal(row, torch.cat([state[n].flatten() for n in library.space.names]))
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = TaskNetwork(module, library.space)(library.basis[1:], x.expand(2, -1, -1, -1, -1))
    for outputs, source in zip(found, (network(1, classes=7), network(2)), strict=True):
        torch.testing.assert_close(outputs, module[3](source[:3](x)))
    longer = library.with_source("fourth", weights(4, classes=2))
    assert longer.basis.shape == (4, library.space.dim)
    other = files["more"] | {"aux.bias": torch.zeros(2)}
    pair = SourceLibrary.from_files(module, {"pre": files["pre"], "other": other}, head=("3.*", "aux.*"))
    assert len(pair.without("other")) == 1  # aux.* is of no source any more
    with pytest.raises(ValueError, match=r"pattern 'aux\.\*' matches no tensor"):
        SourceLibrary.from_files(module, files, head=("3.*", "aux.*"))


def test_a_head_needs_no_block_and_leaves_the_others() -> None:
    library = SourceLibrary.from_files(network(), watched(), {"first": r"0\.", "norm": r"1\."}, head=("3.*",))
    assert library.space.block_names == ("first", "norm")
    assert library.space.block_sizes == (20, 8)
    assert [e.offset for e in library.space.entries] == [0, 18, 20, 22, 24, 26]
    assert library.block("norm").shape == (3, 8)
    with pytest.raises(ValueError, match="block 'last' has no tensor outside the head"):
        SourceLibrary.from_files(network(), watched(), {"last": r"3\.", "rest": ".*"}, head=("3.*",))
    with pytest.raises(ValueError, match=r"no block matches tensor '1\.weight'"):
        SourceLibrary.from_files(network(), watched(), {"first": r"0\."}, head=("3.*",))


def test_sources_come_and_go_and_the_others_stay_in_order() -> None:
    library = SourceLibrary.from_files(network(), watched())
    longer = library.with_source("late", network(7))
    assert longer.names == ("s0", "s1", "s2", "late")
    assert library.names == ("s0", "s1", "s2")
    assert torch.equal(longer.basis[:3], library.basis)
    assert torch.equal(longer.basis[3], library.space.flatten(weights(7)))
    shorter = longer.without("s1")
    assert shorter.names == ("s0", "s2", "late")
    assert torch.equal(shorter.basis, longer.basis[[0, 2, 3]])
    other = longer.without("s0", fallback="s2")
    assert other.names == ("s2", "s1", "late")
    assert torch.equal(other.basis, longer.basis[[2, 1, 3]])
    assert longer.without("s1", fallback="late").names == ("late", "s0", "s2")


def test_sources_that_cannot_come_or_go() -> None:
    library = SourceLibrary.from_files(network(), watched())
    with pytest.raises(ValueError, match="'s1' is there already"):
        library.with_source("s1", network(7))
    with pytest.raises(ValueError, match=r"source 'wide' .* does not fit Sequential:\n  shape: 3\.weight"):
        library.with_source("wide", network(7, classes=9))
    with pytest.raises(ValueError, match="'s0' is theta_pre, the fallback; expected fallback= one of"):
        library.without("s0")
    with pytest.raises(ValueError, match="fallback is 's0'"):
        library.without("s0", fallback="s0")
    with pytest.raises(ValueError, match="source is 'x'"):
        library.without("x")
    with pytest.raises(ValueError, match="the only source"):
        library.without("s1").without("s2").without("s0")


def test_a_library_made_of_a_basis_does_the_same() -> None:
    space = ParameterSpace.from_module(network(), BLOCKS)
    basis = torch.randn(3, space.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    library = SourceLibrary(("a", "b", "c"), basis, space)
    assert library.basis is basis
    assert torch.equal(library.block("head"), basis[:, space.block_sizes[0] :])
    coefficients = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(library.compose(coefficients), compose(coefficients, basis, space), rtol=0, atol=1e-12)
    assert library.stored_bytes == dict.fromkeys("abc", 8 * space.dim)
    changed = library.with_source("d", network(1)).without("b")
    assert changed.basis.dtype == torch.float64
    assert torch.equal(changed.basis[:2], basis[[0, 2]])
    assert torch.equal(changed.basis[2], space.flatten(weights(1)).double())
    with pytest.raises(ValueError, match=r"does not fit the network .*:\n  missing: 0\.weight"):
        library.with_source("e", {"weight": torch.zeros(1)})


def test_refused_libraries() -> None:
    module = network()
    space = ParameterSpace.from_module(module)
    with pytest.raises(ValueError, match="no sources"):
        SourceLibrary.from_state_dicts(module, {})
    with pytest.raises(ValueError, match="repeat"):
        SourceLibrary(("a", "a"), torch.zeros(2, space.dim), space)
    with pytest.raises(ValueError, match="basis has shape"):
        SourceLibrary(("a", "b"), torch.zeros(1, space.dim), space)
    with pytest.raises(ValueError, match="got 1 checkpoints and 2 names"):
        SourceLibrary(("a", "b"), [WatchedCheckpoint(weights())], space)


def test_one_hot_by_name_and_row_and_refused_sources() -> None:
    library = SourceLibrary.from_state_dicts(network(), {n: weights(i) for i, n in enumerate("abc")})
    assert library.one_hot("b", experts=2).tolist() == [0, 1, 0, 0, 0]
    assert library.one_hot(2).tolist() == [0, 0, 1]
    for wrong in ("d", -1, 3):  # row 3 or -1 would open an expert
        with pytest.raises(ValueError, match="expected one of"):
            library.one_hot(wrong, experts=2)


def test_half_precision_and_double_checkpoints_become_float32() -> None:
    states = {
        "half": {k: v.half() if v.is_floating_point() else v for k, v in weights(1).items()},
        "double": {k: v.double() if v.is_floating_point() else v for k, v in weights(2).items()},
    }
    library = SourceLibrary.from_state_dicts(network(), states)
    assert library.basis.dtype == torch.float32
    assert torch.equal(library.basis[1], library.space.flatten(weights(2)))
    assert torch.equal(library.basis[0], library.space.flatten(states["half"]).float())


def test_report_numbers() -> None:
    module = nn.Linear(2, 1, bias=False)
    rows = {"pre": [3.0, 4.0], "east": [4.0, 4.0], "north": [3.0, 6.0], "northeast": [4.0, 5.0]}
    library = SourceLibrary.from_state_dicts(module, {n: {"weight": torch.tensor([r])} for n, r in rows.items()})
    lines = library.report.splitlines()
    assert lines[0].startswith("4 sources, d = 2 (1 parameter tensors, 0 running statistics)")
    table = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert table["pre"][0] == "5.000"
    assert "fallback" in lines[2]
    assert table["east"] == [f"{math.sqrt(32):.3f}", "0.200", "northeast", "+0.71"]
    assert table["north"][1:] == ["0.400", "northeast", "+0.71"]
    single = SourceLibrary.from_state_dicts(module, {"pre": {"weight": torch.tensor([[3.0, 4.0]])}})
    assert len(single.report.splitlines()) == 3
    pair = SourceLibrary.from_state_dicts(module, {n: {"weight": torch.tensor([rows[n]])} for n in ("pre", "east")})
    assert pair.report.splitlines()[3].split()[1:] == ["5.657", "0.200", "-"]


@pytest.mark.parametrize("coefficients", [[0.5, 0.5], np.array([0.5, 0.5])])
def test_coefficients_that_are_no_tensor(coefficients: Any) -> None:
    library = SourceLibrary.from_files(network(), {"a": network(), "b": network()})
    with pytest.raises(ValueError, match=r"coefficients are a \w+; expected a tensor: torch.as_tensor\(coefficients\)"):
        library.compose(coefficients)
    assert library.compose(torch.as_tensor(coefficients)).shape == (library.space.dim,)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([network()], r"sources are a list; expected a mapping of names to checkpoints, .*\{\"first\": \.\.\., "),
        (
            {"a": io.BytesIO(b"x")},
            r"source is a BytesIO, .*; expected a path, .*: give the path of the file, or torch.load",
        ),
        ({"a": [1, 2]}, r"source is a list, \[1, 2\]; expected a path, a network, a state dict or an open checkpoint$"),
        ({"a": nn.Sequential(nn.LazyLinear(2))}, r"source has lazy layers without shapes yet"),
    ],
)
def test_what_is_no_source(sources: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceLibrary.from_files(network(), sources)


def test_a_source_without_values_is_named_when_it_is_read() -> None:
    empty = {name: tensor.to("meta") for name, tensor in network().state_dict().items()}
    library = SourceLibrary.from_files(network(), {"a": network(), "b": empty})
    with pytest.raises(ValueError, match=r"state dict in memory: tensor '[\w.]+' is on the meta device"):
        _ = library.basis
