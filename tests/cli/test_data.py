"""Which images a command reads: splits of other data, data without splits, and tables in capitals."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_world import make_world
from PIL import Image
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.episodes.readers.duplicates import DuplicateWarning
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.runs.pools import build_pool

QUICK = ("training.steps=1", "training.validate_every=0")


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


@pytest.mark.parametrize(("kind", "path"), [("csv", "plain.csv"), ("csv", "PLAIN.CSV"), ("folder", "whole")])
def test_data_without_splits_are_read_as_a_whole_where_none_is_named(
    kind: str, path: str, world: Path, tmp_path: Path
) -> None:
    """Nobody asked for a split: the run is trained, and told what its validation is worth."""
    config = tmp_path / "config.toml"
    config.write_text((world / "config.toml").read_text().replace('train = "train"\nvalidation = "val"\n', ""))
    for name in ("base.safetensors", "other.pt"):
        (tmp_path / name).symlink_to(world / name)
    words = ["--output", tmp_path / "run", "--no-progress", "--device", "cpu"]
    for override in (f'data.kind="{kind}"', f'data.path="{world / path}"', *QUICK):
        words += ["--set", override]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = call("train", config, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.stderr.count("has no splits, so training and validation see the same images") == 1
    split = call("evaluate", tmp_path / "run", "--no-progress")  # all of it was trained on
    assert split.exit_code == 2
    assert "'test'" in split.stderr or "lacks ['split']" in split.stderr


def test_splits_are_found_by_their_own_names_where_none_is_named(world: Path) -> None:
    for data, kind in (("table.csv", "csv"), ("splits", "folder")):
        config = RunConfig(data={"kind": kind, "path": world / data, "size": 16})
        assert len(build_pool(config, "train")) == 40
        assert len(build_pool(config, "test")) == 35
        with pytest.raises(ValueError, match="validation"):  # they have splits, and this is none of them
            build_pool(config, "validation")


def test_a_class_that_is_called_as_a_split_is_a_class(world: Path, tmp_path: Path) -> None:
    for vehicle in ("train", "car"):
        (tmp_path / vehicle).symlink_to(world / "whole" / "c0")
    config = RunConfig(data={"kind": "folder", "path": tmp_path, "size": 16})
    with pytest.warns(DuplicateWarning):
        assert build_pool(config, "train").class_names == (("car", "train"),)


def test_a_split_that_was_named_and_is_not_there_is_refused(world: Path, tmp_path: Path) -> None:
    sets = ["--set", 'data.kind="csv"', "--set", f'data.path="{world / "plain.csv"}"']
    done = call("train", world / "config.toml", "--output", tmp_path, "--no-progress", "--device", "cpu", *sets)
    assert done.exit_code == 2
    assert "lacks ['split']" in done.stderr
