"""The command line on a tiny world: every command end to end, and bad input as a message with exit code 2."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_world import make_images, make_world
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from pyro_smat import RoutedClassifier
from pyro_smat.cli.app import app
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.files import load_state, save_state
from pyro_smat.inference.assembly.config import load_config
from pyro_smat.inference.evaluation import guarantee
from pyro_smat.inference.training.checkpoint import CHECKPOINT


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """The message of a call that must fail with exit code 2."""
    result = call(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    folder = world / "run"
    result = call("train", world / "config.toml", "--output", folder, "--no-progress", "--device", "cpu")
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def test_train_writes_a_run_folder(run: Path) -> None:
    assert {p.name for p in run.iterdir()} >= {"config.json", "history.csv", "checkpoint.safetensors", "router"}
    history = pd.read_csv(run / "history.csv")
    assert list(history["step"]) == [1, 2, 3, 4]
    assert history["validation_accuracy"].notna().tolist() == [False, True, False, True]
    assert {p.name for p in (run / "router").iterdir()} == {"router.json", "router.safetensors"}


def test_a_run_is_not_overwritten_and_resumes_only_as_it_was(world: Path, run: Path) -> None:
    assert "--resume" in refused("train", world / "config.toml", "--output", run)
    message = refused("train", world / "config.toml", "--output", run, "--resume", "--set", "training.steps=9")
    assert "another config" in message
    assert call("train", world / "config.toml", "--output", run, "--resume", "--no-progress").exit_code == 0


def test_a_run_of_an_earlier_version_goes_on(world: Path, run: Path, tmp_path: Path) -> None:
    """It named the splits, lacked some settings, and reported less in its evaluations."""
    old = tmp_path / "run"
    shutil.copytree(run, old)
    config = json.loads((old / "config.json").read_text())
    today = world / "today.toml"
    today.write_text((world / "config.toml").read_text().replace('train = "train"', ""))
    assert config["data"]["train"] == "train"
    assert load_config(today).data.train is None
    for section, key in (("data", "seen"), ("data", "keep_seen"), ("model", "label_noise"), ("training", "numbered")):
        del config[section][key]
    config["evaluation"]["scores"].pop()
    state = load_state(old / CHECKPOINT)
    for key in ("numbered", "seed"):
        del state[key]
    del state["settings"]["numbered"]
    save_state(old / CHECKPOINT, state)
    resume = ["train", today, "--output", old, "--resume", "--no-progress"]
    for wrong in ("data.train=''", "training.steps=9", "model.label_noise=0.2"):
        (old / "config.json").write_text(json.dumps(config))
        assert "another config" in refused(*resume, "--set", wrong)
    assert call(*resume).exit_code == 0
    name = Path("router") / "router.safetensors"
    assert (old / name).read_bytes() == (run / name).read_bytes()


def test_train_with_a_searched_catalog_a_prior_and_a_teacher(world: Path, tmp_path: Path) -> None:
    """What a config can say reaches the run: read back from the history and from the saved router."""
    run, overrides = tmp_path / "run", []
    for override in (
        "guide={kind='hierarchical', catalog={kind='beam', max_sources=2, size=6, episodes=4}}",
        "training.temperature_scaling=true",
        'prior = {kind = "cost_aware", beta = 2.0}',
        "objective.distillation.routing=0.1",
        "objective.threshold=queue",
        "training.kl_warmup=2",
        "decision.gate_samples=2",
    ):
        overrides += ["--set", override]
    command = ["train", world / "config.toml", "--output", run, "--no-progress", "--device", "cpu", *overrides]
    result = call(*command)
    assert result.exit_code == 0, (result.output, result.exception)
    history = pd.read_csv(run / "history.csv")
    assert (history["routing_distillation"] > 0).all()
    assert (history["mutual_information"] <= np.log(4)).all()
    catalog = json.loads((run / "router" / "router.json").read_text())["catalog"]
    mixtures = list(dict.fromkeys(name.split("/")[0] for name in catalog))
    assert 1 <= len(mixtures) <= 3
    assert catalog == [f"{name}/expert{m}" for name in mixtures for m in range(2)]
    prior = RoutedClassifier.load(run / "router").router.model.prior
    opened = [name.replace("/", "+").split("+") for name in catalog]
    prices = torch.tensor([len(parts) - ("base" in parts) for parts in opened])  # the fallback is free
    torch.testing.assert_close(prior.logits, (-2.0 * prices).log_softmax(-1))
    saved = (run / "router" / "router.safetensors").read_bytes()
    assert call(*command, "--resume").exit_code == 0
    assert (run / "router" / "router.safetensors").read_bytes() == saved


@pytest.mark.parametrize("more", [[], ["--label-noise", "0.4"]])
def test_evaluate_writes_metrics_episodes_and_report(run: Path, more: list[str], tmp_path: Path) -> None:
    result = call("evaluate", run, "--episodes", 12, "--output", tmp_path, "--no-progress", *more)
    assert result.exit_code == 0, (result.output, result.exception)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    ours = metrics["methods"]["posterior_predictive"]
    assert {
        "accuracy",
        "accuracy_low",
        "nll",
        "brier",
        "ece",
        "cvar_0.05",
        "cvar_0.1",
        "cvar_0.2",
        "loss_q90",
        "loss_q95",
    } <= set(ours)
    episodes = pd.read_csv(tmp_path / "episodes.csv")
    assert len(episodes) == 12
    assert episodes["accuracy/posterior_predictive"].mean() == pytest.approx(ours["accuracy"])
    assert (episodes["corrupted_labels"] > 0).all() == bool(more)
    page = (tmp_path / "report.html").read_text()
    assert f"{100 * ours['accuracy']:.1f}" in page


def test_evaluate_on_a_folder_that_the_router_never_saw(run: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "new", 4, 6, seed=9, size=20)
    result = call("evaluate", run, "--data", tmp_path / "new", "--episodes", 6, "--no-progress", "--shot", 2)
    assert result.exit_code == 0, (result.output, result.exception)
    assert pd.read_csv(run / "evaluations" / "new" / "episodes.csv")["shots"].eq(6).all()


def test_adapt_and_predict_agree_with_the_library(run: Path, world: Path, tmp_path: Path) -> None:
    support = tmp_path / "support"
    for k in (0, 2, 4):
        (support / f"stripe{k}").mkdir(parents=True)
        for n in range(2):
            shutil.copy(world / "images" / "test" / f"stripe{k}" / f"{n}.png", support / f"stripe{k}")
    explained = call("adapt", run, support, "--device", "cpu")
    assert explained.exit_code == 0
    assert "uncertainty" in explained.stdout
    image = world / "images" / "test" / "stripe2" / "5.png"
    result = call("predict", run, support, image, "--output", tmp_path / "out.csv", "--device", "cpu")
    assert result.exit_code == 0, result.output

    classifier = RoutedClassifier.load(run / "router")
    pool = read_folder(support, size=16, channels=1)
    task = classifier.adapt(pool.images / 255.0, [pool.class_names[0][k] for k in pool.labels[:, 0].tolist()])
    pixels = torch.from_numpy(np.array(Image.open(image)))[None, None] / 255.0
    expected = task.predict_proba(pixels)
    row = pd.read_csv(tmp_path / "out.csv").iloc[0]
    assert row["image"].endswith("5.png")
    np.testing.assert_allclose(row[list(task.classes)].astype(float), expected[0], rtol=1e-5)
    assert result.stdout.split("\t")[1] == task.predict(pixels)[0]
    folder = call("predict", run, support, world / "images" / "test" / "stripe0", "--device", "cpu")
    assert len(folder.stdout.strip().splitlines()) == 8


def test_sources_are_inspected_and_compared(world: Path, tmp_path: Path) -> None:
    result = call("sources", "inspect", world / "config.toml", "--values")
    assert result.exit_code == 0
    assert result.stdout.count("fits") == 2
    state = load_file(world / "base.safetensors")
    name = next(iter(state))
    save_file({k: v for k, v in state.items() if k != name}, tmp_path / "short.safetensors")
    files = f'sources.files={{base="{world}/base.safetensors", short="{tmp_path}/short.safetensors"}}'
    broken = call("sources", "inspect", world / "config.toml", "--set", files)
    assert broken.exit_code == 1
    assert "does not fit" in broken.stdout
    assert name in broken.stdout
    compared = call("sources", "compare", world / "config.toml")
    assert "theta_pre" in compared.stdout
    assert "93.8%" in compared.stdout  # group normalisation starts alike in both


def test_sources_are_compressed_and_read_again(world: Path, tmp_path: Path) -> None:
    result = call("sources", "compress", world / "config.toml", "--output", tmp_path, "--tolerance", "0.02")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.safetensors").stat().st_size < (world / "other.pt").stat().st_size
    files = f'sources.files={{base="{world}/base.safetensors", other="{tmp_path}/other.safetensors"}}'
    again = ("sources", "compress", world / "config.toml", "--set", files, "--output", tmp_path)
    assert "would be overwritten" in refused(*again)
    assert call("sources", "compare", world / "config.toml", "--set", files).exit_code == 0


def test_sources_are_aligned(world: Path, tmp_path: Path) -> None:
    result = call("sources", "align", world / "config.toml", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    aligned, before = load_file(tmp_path / "other.safetensors"), torch.load(world / "other.pt", weights_only=True)
    assert set(aligned) == set(before)
    for name, weights in before.items():  # the same numbers, elsewhere
        torch.testing.assert_close(aligned[name].flatten().sort().values, weights.flatten().sort().values)
    images = world / "images" / "test"
    by_data = ("sources", "align", world / "config.toml", "--method", "activations", "--data", images)
    assert "barrier" in call(*by_data, "--output", tmp_path / "by_data").stdout
    assert "activations" in refused(
        "sources", "align", world / "config.toml", "--output", tmp_path / "x", "--method", "activations"
    )


def test_a_source_is_added_and_removed(world: Path, run: Path, tmp_path: Path) -> None:
    more = call("sources", "add", run, f"third={world}/other.pt", "--output", tmp_path / "more")
    assert more.exit_code == 0, more.output
    explained = call("adapt", tmp_path / "more", world / "images" / "test", "--device", "cpu")
    assert "third" in explained.stdout
    less = call("sources", "remove", tmp_path / "more", "third", "--output", tmp_path / "less")
    assert "base, other" in less.stdout
    assert "NAME=FILE" in refused("sources", "add", run, "third", "--output", tmp_path / "z")
    assert "theta_pre" in refused("sources", "remove", run, "base", "--output", tmp_path / "z")


def test_certify_and_abstain_with_a_guarantee(
    world: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ("--split", "test", "--device", "cpu", "--no-progress")
    result = call("certify", run, "--episodes", "30", "--delta", "0.1", "--output", tmp_path / "c", *shape)
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "c" / "certificates.json").read_text())
    assert "CVaR" in json.dumps(found)
    assert "Certificates" in (tmp_path / "c" / "report.html").read_text()
    few = partial(guarantee.abstain_with_guarantee, episodes=200)  # of the 2,000 that it draws
    monkeypatch.setattr(guarantee, "abstain_with_guarantee", few)
    result = call("evaluate", run, "--episodes", "20", "--abstain-risk", "0.6", "--output", tmp_path / "e", *shape)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "0.6" in result.stdout
    assert "rho" in refused("certify", run, "--rho", "0", *shape)


def test_monitor_follows_a_stream(world: Path, run: Path, tmp_path: Path) -> None:
    state = tmp_path / "monitor.json"
    shutil.copy(run / "monitor.json", state)
    line = call("adapt", run, world / "images" / "test", "--scores", "--device", "cpu").stdout
    assert set(json.loads(line)) == {"kl", "entropy"}
    (tmp_path / "stream.jsonl").write_text(line * 2)
    quiet = call("monitor", state, tmp_path / "stream.jsonl")
    assert quiet.exit_code == 0, quiet.output
    assert "task 2: no alarm" in quiet.stdout
    (tmp_path / "far.jsonl").write_text('{"kl": 99.0, "entropy": 9.0}\n' * 200)
    drifted = call("monitor", state, tmp_path / "far.jsonl")
    assert drifted.exit_code == 1
    assert "DRIFT" in drifted.stdout
    assert "not JSON" in refused("monitor", state, world / "config.toml")


def test_refinement_and_cost(world: Path, run: Path, tmp_path: Path) -> None:
    refined = call("adapt", run, world / "images" / "test", "--refine", "frank-wolfe:steps=2", "--device", "cpu")
    assert refined.exit_code == 0, refined.output
    assert "frank_wolfe" in refined.stdout
    assert "'newton'" in refused("adapt", run, world / "images" / "test", "--refine", "newton")
    measured = call("cost", run, "--repeats", "3", "--output", tmp_path / "cost.json", "--device", "cpu")
    assert measured.exit_code == 0, measured.output
    assert "cost_aware" in measured.stdout
    assert json.loads((tmp_path / "cost.json").read_text())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.step=3", ["training.step", "'steps'"]),
        ("objective.rho=0", ["rho", "(0, 1]"]),
        ("episodes.way=9", ["way 9", "5 classes"]),
        ("episodes.shot=50", ["class", "50"]),
        ('sources.network="resnet18"', ["base.safetensors", "fit"]),
        ('data.path="nowhere"', ["nowhere"]),
        ("nonsense", ["key=value"]),
        ("prior={kind='cost_aware', costs=[1.0]}", ["costs", "(4,)"]),
        ("prior.costs=[1.0]", ["'uniform' has no option 'costs'"]),
        ("training.temperature_scaling=true", ["temperature_scaling", "hierarchical"]),
        ("prior.kind=hierarchical", ["hierarchical", "logistic_normal"]),
        ("model.kind=absent.py:Mine", ["absent.py", "Mine"]),
    ],
)
def test_bad_config_is_a_message(world: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    message = refused("train", world / "config.toml", "--output", tmp_path / "run", "--set", override)
    assert all(word in message for word in words), message


def test_bad_files_are_messages(world: Path, run: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused("train", tmp_path / "absent.toml", "--output", tmp_path / "x")
    broken = tmp_path / "broken"
    shutil.copytree(world, broken, ignore=shutil.ignore_patterns("run"))
    whole = (broken / "base.safetensors").read_bytes()
    (broken / "base.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "base.safetensors" in refused("sources", "inspect", broken / "config.toml")
    (broken / "base.safetensors").write_bytes(whole)
    victim = broken / "images" / "train" / "stripe3" / "2.png"
    victim.write_bytes(victim.read_bytes()[:40])
    assert "2.png" in refused("train", broken / "config.toml", "--output", tmp_path / "y", "--no-progress")
    victim.unlink()
    (broken / "images" / "train" / "stripe9").mkdir()
    assert "stripe9" in refused("train", broken / "config.toml", "--output", tmp_path / "z", "--no-progress")
    assert "router.json" in refused("evaluate", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("adapt", run, tmp_path / "empty")
    file = tmp_path / "file"
    file.write_text("in the way")
    assert "file" in refused("train", world / "config.toml", "--output", file / "run", "--no-progress")
    assert "rule" in refused("predict", run, world / "images" / "test", victim.parent, "--rule", "best")
