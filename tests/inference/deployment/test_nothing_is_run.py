"""No text in a saved router or a run folder makes anything run: each is refused by name, or is harmless."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_world import make_images, make_world
from format_3_router import as_format_3
from router_files import Place, read_description, replaced, sha256, texts, write_description
from typer.testing import CliRunner, Result

from pyro_smat.cli.app import app
from pyro_smat.cli.evaluate import pool_of
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.router import evaluate_router

RICH = (  # as many names as a config can have
    "prior={kind='mixture', components=['uniform', {kind='cost_aware', beta=2.0}]}",
    "guide={kind='catalog', encoder={kind='evidence', hidden=8}, catalog={kind='greedy', size=4, episodes=4}}",
    "decision={rule={kind='top_k', k=2}, score={kind='learned', scores=['entropy', 'variance']}}",
    "evaluation={rules=['mean'], scores=['entropy'], baselines=['source_average'], each_source=false}",
    "objective.episode_loss={kind='clipped_nll', clip=3.0}",
    'sources.blocks={weights=".*weight", rest=".*"}',
    "training.precision='float32'",
)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, images, and a file that leaves a trace when it runs."""
    folder = tmp_path_factory.mktemp("world")
    config = make_world(folder)
    sets = [word for override in RICH for word in ("--set", override)]
    done = call("train", config, "--output", folder / "run", "--no-progress", "--device", "cpu", *sets)
    assert done.exit_code == 0, (done.output, done.exception)
    make_images(folder / "new", 4, 6, seed=9)
    (folder / "evil.py").write_text(
        "import pathlib\n\npathlib.Path(__file__).with_name('trace').touch()\n\n\n"
        "def X(*args, **kwargs):\n    pathlib.Path(__file__).with_name('trace').touch()\n"
    )
    return folder


@pytest.fixture
def evil(world: Path) -> Iterator[str]:
    yield f"{world / 'evil.py'}:X"
    assert not (world / "trace").exists(), "the file was run"


def test_the_file_leaves_a_trace(world: Path) -> None:
    """So that the tests below can fail: a class of one's own that a user names is run."""
    done = call("adapt", world / "run", world / "new", "--guide", f"{world / 'evil.py'}:X", "--device", "cpu")
    assert (world / "trace").exists()
    assert "running" in done.stderr
    (world / "trace").unlink()


def copy_of_run(world: Path, folder: Path) -> Path:
    run = folder / "run"
    shutil.copytree(world / "run", run)
    return run


def loaded_or_refused(folder: Path) -> RoutedClassifier | None:
    """None where it is refused, with a message that names the folder, its file or the file that would be run."""
    try:
        return RoutedClassifier.load(folder)
    except ValueError as error:
        if str(folder) in str(error) or "evil.py" in str(error):
            return None
        raise


def test_no_text_of_a_router_is_run(world: Path, evil: str, tmp_path: Path) -> None:
    run = copy_of_run(world, tmp_path)
    saved = read_description(run / "router")
    places: list[Place] = list(texts(saved))
    assert len(places) > 50
    loaded: list[Place] = []
    for place in places:
        for text in (evil, {"kind": evil}):
            write_description(run / "router", replaced(saved, place, text))
            classifier = loaded_or_refused(run / "router")
            if classifier is None:
                continue
            loaded.append(place)
            try:
                pool, _ = pool_of(classifier.router.config, None, world / "new")
                evaluate_router(classifier, pool, episodes=2, progress=False)
            except ValueError:
                continue
            assert not (world / "trace").exists(), place
    refused = [place for place in places if place not in loaded]
    kinds = {place[:-1] for place in places if place[-1] == "kind" and place[0] != "network"}
    asked = {("config", "model"), ("config", "guide"), ("config", "prior"), ("config", "guide", "encoder")}
    assert asked <= kinds
    assert {(*kind, "kind") for kind in asked} <= set(refused)


@pytest.mark.parametrize("section", ["model", "guide", "prior", "guide.encoder", "decision.rule", "network"])
@pytest.mark.parametrize("command", ["evaluate", "adapt", "certify", "predict", "sources remove"])
def test_no_command_runs_what_a_router_names(
    command: str, section: str, world: Path, evil: str, tmp_path: Path
) -> None:
    run = copy_of_run(world, tmp_path)
    place: Place = ("network", "kind") if section == "network" else ("config", *section.split("."), "kind")
    write_description(run / "router", replaced(read_description(run / "router"), place, evil))
    words: dict[str, list[object]] = {
        "evaluate": ["evaluate", run, "--data", world / "new", "--episodes", 2, "--no-progress"],
        "certify": ["certify", run, "--data", world / "new", "--episodes", 2, "--no-progress"],
        "adapt": ["adapt", run, world / "new"],
        "predict": ["predict", run, world / "new", world / "new" / "stripe0"],
        "sources remove": ["sources", "remove", run, "other", "--output", tmp_path / "less"],
    }
    done = call(*words[command])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert "evil.py:X" in done.stderr


def with_header(raw: bytes, change: Any) -> bytes:
    """A safetensors file with another JSON header."""
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + raw[8 + size :]


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "catalog.safetensors"])
def test_no_text_of_a_state_is_run_by_resuming(name: str, world: Path, evil: str, tmp_path: Path) -> None:
    """Texts of the header with their digest made to hold would need the digest of the tensors: without, all refused."""
    run = copy_of_run(world, tmp_path)
    raw = (run / name).read_bytes()
    sets = [word for override in RICH for word in ("--set", override)]
    command = ["train", world / "config.toml", "--output", run, "--resume", "--no-progress", "--device", "cpu", *sets]
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    state = json.loads(header["__metadata__"]["state"])
    places = list(texts(state))
    for place in places[:: max(len(places) // 6, 1)]:

        def changed(value: dict[str, Any], place: Place = place) -> dict[str, Any]:
            value["__metadata__"]["state"] = json.dumps(replaced(state, place, evil))
            return value

        (run / name).write_bytes(with_header(raw, changed))
        done = call(*command)
        assert done.exit_code == 2, (place, done.output)
        assert f"{name}: is damaged" in done.stderr


def test_no_text_of_a_config_or_a_monitor_is_run(world: Path, evil: str, tmp_path: Path) -> None:
    run = copy_of_run(world, tmp_path)
    sets = [word for override in RICH for word in ("--set", override)]
    resume = ["train", world / "config.toml", "--output", run, "--resume", "--no-progress", "--device", "cpu", *sets]
    config = json.loads((run / "config.json").read_text())
    places = list(texts(config))
    assert len(places) > 30
    for place in places[::8]:
        (run / "config.json").write_text(json.dumps(replaced(config, place, evil), indent=2))
        done = call(*resume)
        if place[0] == "evaluation":  # no part of a training: it is written anew
            assert done.exit_code == 0
            continue
        assert done.exit_code == 2
        assert "another config" in done.stderr
    monitor = json.loads((run / "monitor.json").read_text())
    (tmp_path / "stream.jsonl").write_text(json.dumps({"kl": 1.0, "entropy": 0.5}) + "\n")
    leaves = [*texts(monitor), ("alpha",), ("martingales", "kl"), ("martingales",)]
    for place in leaves:
        (run / "monitor.json").write_text(json.dumps(replaced(monitor, place, evil)))
        done = call("monitor", run / "monitor.json", tmp_path / "stream.jsonl")
        assert done.exit_code == 2, (place, done.output, done.exception)
        assert "monitor.json" in done.stderr


def test_a_router_of_format_3_names_no_file_to_run(world: Path, evil: str, tmp_path: Path) -> None:
    """Its config had a section for classes of one's own, and a place of their own beside it."""
    run = copy_of_run(world, tmp_path)
    for values in (
        as_format_3(own_classes={"model": None, "guide": evil}),
        as_format_3(own_classes={"model": evil, "guide": None}),
        as_format_3(network=evil),
    ):
        (run / "router" / "router.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"evil\.py:X"):
            RoutedClassifier.load(run / "router")


def test_a_digest_holds_what_it_says(world: Path) -> None:
    """The tests above change a folder as RoutedClassifier.save would have written it."""
    saved = read_description(world / "run" / "router")
    assert saved["weights"] == sha256((world / "run" / "router" / "router.safetensors").read_bytes())
