"""``pyro-smat diagnose`` on a tiny world: what it writes, other seeds, another run and another prior, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr
from cli_world import make_world
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app

SHAPE = ("--episodes", "12", "--draws", "8", "--shots", "1,2", "--device", "cpu", "--no-progress")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    result = call("train", folder / "config.toml", "--output", folder / "run", "--no-progress", "--device", "cpu")
    assert result.exit_code == 0, (result.output, result.exception)
    return folder / "run"


def test_writes_tree_numbers_and_report(run: Path, tmp_path: Path) -> None:
    result = call(
        "diagnose", run, run, "--prior", "cost_aware:beta=0.5", "--against", run, "--output", tmp_path / "d", *SHAPE
    )
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "d" / "diagnostics.json").read_text())
    answers = {verdict["question"]: verdict for verdict in found["verdicts"]}
    assert {v["answer"] for v in answers.values()} <= {"ok", "look", "cannot tell"}
    assert answers["Is q(route) the frequency of true routes?"]["answer"] == "cannot tell"
    assert all(v["cannot_see"] for name, v in answers.items() if "another run" not in name)
    assert any("cost_aware:beta=0.5" in question for question in answers) or "prior_swap" in found["left_out"]
    # The same run as another seed and as a competitor: no disagreement, no difference.
    assert found["results"]["training_seeds"]["seeds"] == 2
    assert answers["Does another run predict better?"]["answer"] != "look"
    with xr.open_datatree(tmp_path / "d" / "diagnostics.nc", engine="h5netcdf") as tree:
        assert tree["posterior"].sizes["chain"] == 2
        assert tree["posterior"].sizes["draw"] == 8
    page = (tmp_path / "d" / "report.html").read_text()
    assert "What it cannot see" in page
    assert "Where it loses" not in page
    assert f"pyro-smat diagnose {run}" in page
    for question in answers:
        assert question.split("(")[0] in page


def test_same_seed_same_numbers(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call("diagnose", run, "--seed", "3", "--output", tmp_path / name, *SHAPE).exit_code == 0
    first, again = ((tmp_path / name / "diagnostics.json").read_text() for name in ("a", "b"))
    assert first == again


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--shots", "many"), "--shots is 'many'"),
        (("--shots", "0,2"), "--shots is '0,2'"),
        (("--draws", "0"), "--draws 0"),
        (("--prior", "no_such_prior"), "no_such_prior"),
    ],
)
def test_refused(run: Path, more: tuple[str, ...], words: str) -> None:
    result = call("diagnose", run, *SHAPE, *more)
    assert result.exit_code == 2
    assert words in result.stderr
