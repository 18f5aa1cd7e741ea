"""Which images a command reads: splits of other data, data without splits, and tables in capitals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cli_world import make_world
from PIL import Image
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and other data as a table and as folders, with 40 training images and 35 test images in 5 classes."""
    folder = tmp_path_factory.mktemp("world")
    config = make_world(folder)
    quick = ("--set", "training.steps=1", "--set", "training.validate_every=0")
    done = call("train", config, "--output", folder / "run", "--no-progress", "--device", "cpu", *quick)
    assert done.exit_code == 0, (done.output, done.exception)
    rng = np.random.default_rng(0)
    rows, plain = ["path,label,split"], ["path,label"]
    for k in range(5):
        for i in range(15):
            split = "train" if i < 8 else "test"
            picture = Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8))
            flat, classed = Path("flat") / f"c{k}_{i}.png", Path("whole") / f"c{k}" / f"{i}.png"
            for file in (flat, classed, Path("splits") / split / f"c{k}" / f"{i}.png"):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / file)
            rows.append(f"{flat},c{k},{split}")
            plain.append(f"{flat},c{k}")
    (folder / "table.csv").write_text("\n".join(rows))
    for name in ("plain.csv", "PLAIN.CSV"):
        (folder / name).write_text("\n".join(plain))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "certify"])
@pytest.mark.parametrize("data", ["table.csv", "splits"])
@pytest.mark.parametrize(("split", "expected"), [("test", 35), ("train", 40)])
def test_a_split_of_other_data_is_that_split(
    command: str, data: str, split: str, expected: int, world: Path, tmp_path: Path
) -> None:
    done = call(command, world / "run", "--data", world / data, "--split", split, "--episodes", 5, "--no-progress",
                "--output", tmp_path, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    counted = re.search(r"([\d,]+) images, 5", (tmp_path / "report.html").read_text())
    assert counted is not None
    assert int(counted[1]) == expected


def test_a_split_that_other_data_lack_is_refused(world: Path) -> None:
    for data in ("table.csv", "plain.csv", "splits", "whole"):
        done = call("evaluate", world / "run", "--data", world / data, "--split", "nowhere", "--no-progress")
        assert done.exit_code == 2, done.output
        assert ("lacks ['split']" if data == "plain.csv" else "nowhere") in done.stderr


@pytest.mark.parametrize(("kind", "path"), [("csv", "plain.csv"), ("csv", "PLAIN.CSV"), ("folder", "whole")])
def test_data_without_splits_can_be_trained_on(kind: str, path: str, world: Path, tmp_path: Path) -> None:
    """TOML has no None: an empty name says that there are no splits."""
    sets: list[str] = []
    for override in (
        f'data.kind="{kind}"',
        f'data.path="{world / path}"',
        'data.train=""',
        'data.validation=""',
        "training.steps=1",
        "training.validate_every=0",
    ):
        sets += ["--set", override]
    done = call("train", world / "config.toml", "--output", tmp_path, "--no-progress", "--device", "cpu", *sets)
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["train"] == ""


def test_data_without_splits_say_what_to_do(world: Path, tmp_path: Path) -> None:
    sets = ["--set", 'data.kind="csv"', "--set", f'data.path="{world / "plain.csv"}"']
    done = call("train", world / "config.toml", "--output", tmp_path, "--no-progress", "--device", "cpu", *sets)
    assert done.exit_code == 2
    assert "split" in done.stderr
