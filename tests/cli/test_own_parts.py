"""Models, guides and networks of one's own on the command line: named to train, and named again to use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cli_world import make_world
from own_parts import write_own_parts
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.cli.options import own_parts


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_command_needs_what_the_router_was_trained_with(tmp_path: Path) -> None:
    config, run, files = make_world(tmp_path), tmp_path / "run", write_own_parts(tmp_path / "own")
    classes = ["--model", f"{files / 'my_model.py'}:Tempered", "--guide", f"{files / 'my_guide.py'}:FromLosses"]
    quick = ["--set", "training.steps=2", "--set", "training.validate_every=0"]
    result = call("train", config, "--output", run, "--no-progress", "--device", "cpu", *classes, *quick)
    assert result.exit_code == 0, (result.output, result.exception)
    described = json.loads((run / "config.json").read_text())
    assert (described["model"]["kind"], described["guide"]["kind"]) == (classes[1], classes[3])

    support = tmp_path / "support"
    for name in ("stripe0", "stripe2"):
        (support / name).mkdir(parents=True)
        for n in range(2):
            shutil.copy(tmp_path / "images" / "test" / name / f"{n}.png", support / name)
    images = tmp_path / "images" / "test" / "stripe2"
    commands: list[list[object]] = [
        ["evaluate", run, "--episodes", 4, "--no-progress", "--output", tmp_path / "out"],
        ["adapt", run, support],
        ["predict", run, support, images],
    ]
    for command in commands:
        refused = call(*command)
        assert refused.exit_code == 2, refused.output
        assert f"(command line: --own model={classes[1]})" in refused.stderr
        refused = call(*command, *classes[:2])
        assert refused.exit_code == 2, refused.output
        assert f"(command line: --own guide={classes[3]})" in refused.stderr
        result = call(*command, *classes)
        assert result.exit_code == 0, (result.output, result.exception)
        assert f"running {classes[1]} for the model" in result.stderr
        result = call(*command, "--own", f"model={classes[1]}", "--own", f"guide={classes[3]}")
        assert result.exit_code == 0, (result.output, result.exception)
    assert len(pd.read_csv(tmp_path / "out" / "episodes.csv")) == 4

    wrong = ["--model", f"{files / 'my_model.py'}:Silent"]
    refused = call("train", config, "--output", tmp_path / "other", "--no-progress", *wrong)
    assert refused.exit_code == 2
    assert "error: model Silent observes nothing" in refused.stderr
    assert "another config" in call("train", config, "--output", run, "--resume", *quick).stderr


NETWORK = """
from torch import nn


def build(width: int = 3):
    return nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(49 * width, 7))
"""


@pytest.mark.parametrize("named", ["in the config", "as an option"])
def test_a_network_of_ones_own(named: str, tmp_path: Path) -> None:
    import torch

    from pyro_smat.networks.build import build_network

    config, run = make_world(tmp_path), tmp_path / "run"
    (tmp_path / "net.py").write_text(NETWORK)
    place = f"{tmp_path / 'net.py'}:build"
    torch.manual_seed(0)
    for name in ("base", "other"):
        torch.save(build_network(place, run_files=True).state_dict(), tmp_path / f"{name}.pt")
    text = config.read_text().replace("base.safetensors", "base.pt")
    old = 'network = {kind = "conv4", channels = 4, image_size = 16}'
    config.write_text(text.replace(old, 'network = "net.py:build"' if named == "in the config" else ""))
    quick = ["--set", "training.steps=1", "--set", "training.validate_every=0", "--device", "cpu", "--no-progress"]
    option = ["--network", place]
    result = call("train", config, "--output", run, *quick, *([] if named == "in the config" else option))
    assert result.exit_code == 0, (result.output, result.exception)
    images = tmp_path / "images" / "test"
    refused = call("adapt", run, images, "--device", "cpu")
    assert refused.exit_code == 2
    assert "net.py:build" in refused.stderr
    result = call("adapt", run, images, "--device", "cpu", *option)
    assert result.exit_code == 0, (result.output, result.exception)


def test_own_parts_are_kinds_and_files() -> None:
    found = own_parts("a.py:A", None, "n.py:build", ["prior=p.py:P", "episode-loss=l.py:loss"])
    assert found == {"model": "a.py:A", "network": "n.py:build", "prior": "p.py:P", "episode_loss": "l.py:loss"}
    for wrong in ("p.py:P", "priors=p.py:P"):
        with pytest.raises(ValueError, match=r"--own is '.*'; expected KIND=file.py:Name, the kind one of .*prior"):
            own_parts(own=[wrong])
