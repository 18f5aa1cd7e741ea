"""Entries: names find classes, unknown names are told the nearest known one, and files are run only where allowed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pyro_smat.registry import KINDS, find, names, register
from pyro_smat.registry.entries import is_file, load_file, name_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_entries_that_are_found_by_their_names(kind: str) -> None:
    assert names(kind)
    assert list(names(kind)) == sorted(names(kind))
    for name in names(kind):
        assert name_of(kind, find(kind, name)) == name
        assert name == name.lower().replace("-", "_")


@pytest.mark.parametrize(
    ("kind", "alias", "name"),
    [
        ("decision_rule", "ensemble", "posterior_predictive"),
        ("decision_rule", "top-k", "top_k"),
        ("uncertainty_score", "confidence", "least_confidence"),
        ("episode_loss", "ensemble_nll", "predictive_nll"),
        ("refinement", "frank-wolfe", "frank_wolfe"),
    ],
)
def test_aliases_find_the_same_thing_and_are_not_listed(kind: str, alias: str, name: str) -> None:
    assert find(kind, alias) is find(kind, name)
    assert alias not in names(kind)


def test_a_prefix_binds_the_rest_of_the_name() -> None:
    found = find("network", "torchvision:resnet18")
    assert isinstance(found, partial)
    assert found.func is find("network", "torchvision")
    assert found.args == ("resnet18",)
    with pytest.raises(ValueError, match="there is no network 'torchvison:resnet18'"):
        find("network", "torchvison:resnet18")


def test_unknown_names_are_told_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"there is no prior 'unifrom'; did you mean 'uniform'\?"):
        find("prior", "unifrom")
    with pytest.raises(
        ValueError, match=r"there is no encoder 'xyz'; expected one of deep_sets, .* or \"file.py:Name\""
    ):
        find("encoder", "xyz")


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_smat.registry import entries

    monkeypatch.setattr(entries, "_entries", {kind: dict(own) for kind, own in entries._entries.items()})
    monkeypatch.setattr(entries, "_aliases", {kind: dict(own) for kind, own in entries._aliases.items()})
    names("corruption")

    def mine() -> None: ...
    def other() -> None: ...

    assert register("corruption", "mine", "my-own")(mine) is mine
    assert find("corruption", "my-own") is mine
    register("corruption", "mine")(mine)  # a module that is reloaded
    for name in ("mine", "my-own", "label_noise"):
        with pytest.raises(ValueError, match=rf"corruption '{name}' is registered already, by .*; choose another name"):
            register("corruption", name)(other)
    with pytest.raises(ValueError, match="there is no kind 'colour'; expected one of model, prior"):
        register("colour", "red")


FILE = """
import pathlib
from dataclasses import dataclass

pathlib.Path(__file__).with_suffix(".trace").touch()


@dataclass(frozen=True)
class Options:
    depth: int = 3


def build(depth: int = Options().depth):
    return depth


a_number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return path


def test_a_file_is_run_only_where_it_may_be(file: Path) -> None:
    place = f"{file}:build"
    with pytest.raises(
        ValueError, match=r"with a prior of your own, .*own.py:build, and loading never runs a file: pass"
    ):
        find("prior", place)
    with pytest.raises(
        ValueError, match=r"pass own={'episode_loss': build} \(command line: --own episode_loss=.*own.py:build\)"
    ):
        find("episode_loss", place, own={"prior": int})
    assert find("prior", place, own={"prior": int}) is int
    assert not file.with_suffix(".trace").exists()
    assert find("prior", place, run_files=True)() == 3
    assert file.with_suffix(".trace").exists()


@pytest.mark.parametrize("reference", ["my_model.py", "my_model:Tempered", "my_model.txt:Tempered", "Tempered"])
def test_references_of_another_form_are_refused(reference: str) -> None:
    assert not is_file(reference)
    with pytest.raises(ValueError, match=r"is not of the form file.py:Name, e.g. my_model.py:MyModel"):
        load_file(reference)


def test_files_and_names_that_are_not_there(file: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.py: no such file; expected the Python file that defines MyModel"):
        load_file(f"{file.parent / 'absent.py'}:MyModel")
    for name in ("Absent", "a_number"):
        with pytest.raises(ValueError, match=rf"own.py: has no class or function '{name}'; it has Options, build"):
            load_file(f"{file}:{name}")
