"""Options of the program itself, and long lists of tensors in a few lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from cli_world import make_world
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from pyro_smat import __version__
from pyro_smat.cli import app as program
from pyro_smat.cli.app import app

COMMANDS = ("quickstart", "train", "evaluate", "certify", "adapt", "predict", "monitor", "diagnose", "cost", "sources")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_version_is_that_of_the_package() -> None:
    done = call("--version")
    assert (done.exit_code, done.output) == (0, f"pyro-smat {__version__}\n")


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
@pytest.mark.parametrize("name", ["PYTORCH_ENABLE_MPS_FALLBACK", "THP_MEM_ALLOC_ENABLE"])
def test_variables_are_set_where_the_user_has_not(
    name: str, given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setattr(program, "app", lambda: seen.update(os.environ))
    kept = {k: v for k, v in os.environ.items() if k != name}
    monkeypatch.setattr(os, "environ", kept | ({} if given is None else {name: given}))
    program.main()
    assert seen[name] == expected


def test_help_has_a_short_name_everywhere() -> None:
    whole = call("-h")
    assert whole.exit_code == 0
    assert whole.output == call("--help").output
    for command in COMMANDS:
        assert command in whole.output
        short = call(command, "-h")
        assert short.exit_code == 0, (command, short.output)
        assert short.output == call(command, "--help").output


@pytest.mark.parametrize("command", ["train", "sources inspect"])
def test_missing_tensors_are_summarised(command: str, tmp_path: Path) -> None:
    """A checkpoint that lacks every tensor but one: three are named, the others counted, by both commands."""
    make_world(tmp_path)
    file = next(tmp_path.rglob("*.safetensors"))
    tensors = load_file(file)
    kept = next(iter(tensors))
    save_file({kept: torch.clone(tensors[kept])}, file)
    output = ("--output", tmp_path / "new", "--no-progress") if command == "train" else ()
    done = call(*command.split(), tmp_path / "config.toml", *output)
    assert done.exit_code != 0
    told = done.stderr + done.stdout
    named = [name for name in tensors if f"missing: {name} " in told]
    assert 1 <= len(named) <= 3
    assert len(tensors) - 1 - len(named) == 0 or f"missing: and {len(tensors) - 1 - len(named)} more" in told
