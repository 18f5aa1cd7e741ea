"""A run on episodes as Meta-Dataset draws them: trained, evaluated as trained, and evaluated on fixed shots."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from cli_world import make_world
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_train_and_evaluate(tmp_path: Path) -> None:
    config = make_world(tmp_path)
    episodes = ("--set", "episodes={kind='meta_dataset', way=[2, 4]}", "--set", "training.steps=1")
    trained = call("train", config, "--output", tmp_path / "run", "--no-progress", "--device", "cpu", *episodes)
    assert trained.exit_code == 0, (trained.output, trained.exception)
    for words, shots in (
        (("--output", tmp_path / "as"), None),
        (("--shot", 2, "--query", 2, "--output", tmp_path / "fixed"), 4),
    ):
        done = call("evaluate", tmp_path / "run", "--episodes", 6, "--no-progress", *words)
        assert done.exit_code == 0, (done.output, done.exception)
        table = pd.read_csv(Path(words[-1]) / "episodes.csv")
        assert json.loads((Path(words[-1]) / "metrics.json").read_text())["episodes"] == 6
        assert (table.shots == shots).all() if shots else table.shots.nunique() > 1
    assert "as Meta-Dataset draws them" in (tmp_path / "as" / "report.html").read_text()
    wrong = call("train", config, "--output", tmp_path / "x", "--set", "episodes.kind=meta_dataset")
    assert wrong.exit_code == 2
    assert "draws shot and query itself" in wrong.output
