"""Baselines that a config names: those that need stored subspaces or validation episodes reach the report too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_world import make_world
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.inference.deployment.classifier import RoutedClassifier

NAMED = """[
    "subspace_residual",
    {kind = "aligned_source", source = "other", steps = 3},
    {kind = "concatenation", select = true},
    "greedy_soup",
    "uniform_soup",
    {kind = "linear_probe", start = "best_source"},
    {kind = "lora", start = "best_source", steps = 2},
]"""


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    make_world(folder)
    return folder


def test_sources_subspace_then_train_and_evaluate(world: Path) -> None:
    config, images = world / "config.toml", world / "images"
    words = ("sources", "subspace", f"base={images}", f"other={images}", "--split", "train", "--rank", "3")
    fitted = call(*words, "--config", config)
    assert fitted.exit_code == 0, (fitted.output, fitted.exception)
    assert "other.pt.subspace: rank 3 of" in fitted.output
    assert (world / "base.safetensors.subspace").is_file()
    named = ("--set", f"evaluation.baselines={NAMED}".replace("\n", " "), "--set", "training.steps=1")
    trained = call("train", config, "--output", world / "run", "--no-progress", "--device", "cpu", *named)
    assert trained.exit_code == 0, (trained.output, trained.exception)
    saved = RoutedClassifier.load(world / "run" / "router").router.library.subspaces
    assert {name: subspace.rank for name, subspace in saved.items()} == {"base": 3, "other": 3}
    done = call("evaluate", world / "run", "--episodes", "4", "--no-progress")
    assert done.exit_code == 0, (done.output, done.exception)
    metrics = json.loads((world / "run" / "evaluations" / "test" / "metrics.json").read_text())
    expected = {
        "source by subspace residual",
        "source: other, aligned",
        "ridge on the features of all sources, selected by the support",
        "greedy soup",
        "uniform soup",
        "linear probe of the best source",
        "LoRA of the best source",
    }
    assert expected <= set(metrics["methods"])
    assert expected <= set(metrics["seconds_per_episode"])
    assert all(seconds > 0 for seconds in metrics["seconds_per_episode"].values())
    report = (world / "run" / "evaluations" / "test" / "report.html").read_text()
    assert all(name in report for name in expected)


def test_what_is_no_source_is_refused(world: Path) -> None:
    wrong = call("sources", "subspace", f"nobody={world / 'images'}", "--config", world / "config.toml")
    assert wrong.exit_code == 2
    assert "NAME=FOLDER with NAME one of the sources base, other" in wrong.output
