"""SourceLibrary and load_weights: what opens, what is refused and how."""

from __future__ import annotations

import math
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_smat.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary, load_weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["safetensors", "zip .pt", "old .pt", "wrapped .pth"])
def test_weights_open_from_every_format(tmp_path: Path, kind: str) -> None:
    state = network(1).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth" if "pth" in kind else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"state_dict": state, "epoch": 3} if "wrapped" in kind else state,
            path,
            _use_new_zipfile_serialization=kind != "old .pt",
        )
    assert same(load_weights(path), dict(state))


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


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt: no such file"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="no such file"):
        load_weights(tmp_path)


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
            load_weights(path)
        except ValueError as error:
            assert "damaged.pt" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200


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
    for row, module in zip(library.basis, modules.values(), strict=True):
        state = module.state_dict()
        assert torch.equal(row, torch.cat([state[n].flatten() for n in library.space.names]))
    assert "1.num_batches_tracked" in modules["a"].state_dict()
    assert "1.num_batches_tracked" not in library.space.names


def test_every_problem_of_every_file_is_listed_in_one_error(tmp_path: Path) -> None:
    first, second = dict(network(1).state_dict()), dict(network(2).state_dict())
    del first["3.bias"]
    first["head.weight"] = torch.zeros(2, 2)
    second["0.weight"] = torch.zeros(2, 3, 3, 3)
    second["1.running_var"] = torch.tensor([1.0, math.nan])
    files = {"good": tmp_path / "g.pt", "first": tmp_path / "f.pt", "second": tmp_path / "s.pt"}
    for path, state in zip(files.values(), (network().state_dict(), first, second), strict=True):
        torch.save(dict(state), path)
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
        "not finite: 1.running_var",
    ):
        assert part in message
    assert "'good'" not in message
    assert "another architecture" not in message


def test_a_checkpoint_of_another_architecture_is_called_that() -> None:
    other = OrderedDict(("encoder." + k, v) for k, v in network().state_dict().items())
    with pytest.raises(ValueError, match="source 'x' does not fit Sequential - another architecture"):
        SourceLibrary.from_state_dicts(network(), {"x": other})


def test_refused_libraries() -> None:
    module = network()
    space = ParameterSpace.from_module(module)
    with pytest.raises(ValueError, match="no sources"):
        SourceLibrary.from_state_dicts(module, {})
    with pytest.raises(ValueError, match="repeat"):
        SourceLibrary(("a", "a"), torch.zeros(2, space.dim), space)
    with pytest.raises(ValueError, match="basis has shape"):
        SourceLibrary(("a", "b"), torch.zeros(1, space.dim), space)


def test_one_hot_by_name_and_row_and_refused_sources() -> None:
    library = SourceLibrary.from_state_dicts(network(), {n: network(i).state_dict() for i, n in enumerate("abc")})
    assert library.one_hot("b", experts=2).tolist() == [0, 1, 0, 0, 0]
    assert library.one_hot(2).tolist() == [0, 0, 1]
    for wrong in ("d", -1, 3):  # row 3 or -1 would open an expert
        with pytest.raises(ValueError, match="expected one of"):
            library.one_hot(wrong, experts=2)


def test_half_precision_and_double_checkpoints_become_float32() -> None:
    module = network()
    states = {
        "half": {k: v.half() if v.is_floating_point() else v for k, v in network(1).state_dict().items()},
        "double": {k: v.double() if v.is_floating_point() else v for k, v in network(2).state_dict().items()},
    }
    library = SourceLibrary.from_state_dicts(module, states)
    assert library.basis.dtype == torch.float32
    assert torch.equal(library.basis[1], library.space.flatten(network(2).state_dict()))


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
