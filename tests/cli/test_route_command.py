"""``pyro-smat route``: from class folders to a summary, alone and as one of several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import make_images, make_world
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app

pq = pytest.importorskip("pyarrow.parquet")


def call(*words: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env=env)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    config = make_world(folder)
    made = call("train", config, "--output", folder / "run", "--no-progress", "--device", "cpu")
    assert made.exit_code == 0, made.output
    for task in range(4):
        for role, count in (("support", 3), ("query", 2)):
            make_images(folder / "tasks" / f"t{task}" / role, 3, count, seed=10 * task + count)
    (folder / "tasks" / "t2" / "support" / "stripe0" / "0.png").write_bytes(b"")
    return folder / "run"


def test_a_folder_of_tasks(run: Path, tmp_path: Path) -> None:
    words = ("route", run, run.parent / "tasks", "--output", tmp_path, "--size", 3, "--device", "cpu", "--no-progress")
    found = call(*words, "--probabilities")
    assert found.exit_code == 0, found.output
    assert "4 tasks, 1 could not be routed" in found.output
    assert "0.png cannot be read as an image" in found.output
    assert "CVaR (worst 10%) of error" in found.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["tasks"], summary["labelled"], len(summary["certificates"])) == (4, 3, 2)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [pq.read_table(part).num_rows for part in parts] == [3, 1]
    assert pq.read_schema(parts[0]).metadata[b"sources"] == b"base\nother"
    before = [part.stat().st_mtime_ns for part in parts]
    again = call(*words, "--probabilities")
    assert again.output == found.output
    assert [part.stat().st_mtime_ns for part in parts] == before
    other = call(*words)
    assert other.exit_code == 2
    assert "differs in probabilities" in other.output


def test_one_of_two_processes(run: Path, tmp_path: Path) -> None:
    words = ("route", run, run.parent / "tasks", "--output", tmp_path, "--size", 1, "--device", "cpu", "--no-progress")
    first = call(*words, env={"RANK": "1", "WORLD_SIZE": "2"})
    assert first.output.startswith("process 1 of 2 has done its parts")
    assert sorted(int(path.name[5:11]) for path in (tmp_path / "parts").iterdir()) == [1, 3]
    last = call(*words, env={"RANK": "0", "WORLD_SIZE": "2"})
    assert "4 tasks, 1 could not be routed" in last.output
    wrong = call(*words, env={"RANK": "two"})
    assert (wrong.exit_code, "RANK='two'" in wrong.output) == (2, True)
