"""A router over a network of transformers carries the network's configuration, and needs the folder no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from router_files import read_description, sha256, write_description
from torch import Tensor

from pyro_smat.inference.deployment.classifier import RoutedClassifier

transformers = pytest.importorskip("transformers")

SHAPE = (3, 32, 32)
LABELS = ["a", "a", "b", "b"]


def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def answers(classifier: RoutedClassifier) -> Tensor:
    return classifier.adapt(images(), LABELS).predict_proba(images())


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensor]:
    """A router whose network was a relative path, and what it answers."""
    monkeypatch.chdir(tmp_path)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=16
    )
    for name in ("first", "second"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            transformers.ViTForImageClassification(config).save_pretrained(name)
    classifier = RoutedClassifier.from_sources(
        {"first": "first", "second": "second"},
        network="transformers:first",
        image_shape=SHAPE,
        head=("classifier.*",),
    )
    classifier.save("router")
    return tmp_path, answers(classifier)


def test_from_another_folder(saved: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = saved
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert torch.equal(answers(RoutedClassifier.load(folder / "router")), expected)


def test_without_the_folder_and_saved_again(saved: tuple[Path, Tensor]) -> None:
    folder, expected = saved
    shutil.rmtree(folder / "first")
    again = RoutedClassifier.load(folder / "router")
    again.save(folder / "copy")
    shutil.rmtree(folder / "router")
    assert torch.equal(answers(RoutedClassifier.load(folder / "copy")), expected)


def test_with_a_folder_that_was_edited(saved: tuple[Path, Tensor]) -> None:
    folder, expected = saved
    path = folder / "first" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1.0, "hidden_act": "relu"}))
    assert torch.equal(answers(RoutedClassifier.load(folder / "router")), expected)


def test_network_json_is_what_was_written(saved: tuple[Path, Tensor]) -> None:
    folder, _ = saved
    path = folder / "router" / "network.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"gelu", b"relu"))
    with pytest.raises(ValueError, match=r"network\.json: is damaged, or of another router"):
        RoutedClassifier.load(folder / "router")
    path.unlink()
    with pytest.raises(ValueError, match=r"network\.json: no such file; expected what RoutedClassifier\.save wrote"):
        RoutedClassifier.load(folder / "router")


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {"config": {"model_type": "vit", "hidden_size": "wide"}, "preprocessor": {}},
        {"config": {"model_type": "vit", "patch_size": 0}, "preprocessor": {}},
        {"config": {"model_type": "bert"}, "preprocessor": {}},
        {"config": {"model_type": "vit"}, "preprocessor": []},
    ],
)
def test_a_configuration_with_a_digest_that_holds_is_not_believed(saved: tuple[Path, Tensor], values: Any) -> None:
    folder, _ = saved
    content = json.dumps(values).encode()
    (folder / "router" / "network.json").write_bytes(content)
    write_description(folder / "router", {**read_description(folder / "router"), "configuration": sha256(content)})
    with pytest.raises(ValueError, match=r"router"):
        RoutedClassifier.load(folder / "router")


def test_code_beside_a_configuration_is_not_run(saved: tuple[Path, Tensor]) -> None:
    """Neither what it names in a folder nor what it names on a hub."""
    folder, _ = saved
    path = folder / "router" / "network.json"
    (folder / "router" / "evil.py").write_text("import pathlib\n\npathlib.Path('trace').touch()\n\n\nclass X: ...\n")
    values = json.loads(path.read_text())
    values["config"] |= {"auto_map": {"AutoConfig": "evil.X", "AutoModel": "evil.X"}, "architectures": ["evil.X"]}
    content = json.dumps(values).encode()
    path.write_bytes(content)
    write_description(folder / "router", {**read_description(folder / "router"), "configuration": sha256(content)})
    with pytest.raises(ValueError, match="router"):  # the plain encoder has other weights than the classifier
        RoutedClassifier.load(folder / "router")
    assert not (folder / "trace").exists()


def test_a_router_from_before_there_was_a_configuration(saved: tuple[Path, Tensor]) -> None:
    """It is read by the network's name, as it was."""
    folder, expected = saved
    values = read_description(folder / "router")
    del values["configuration"]
    write_description(folder / "router", values)
    (folder / "router" / "network.json").unlink()
    assert torch.equal(answers(RoutedClassifier.load(folder / "router")), expected)
    shutil.rmtree(folder / "first")
    with pytest.raises(ValueError, match=r"there is no folder .*first with a config\.json"):
        RoutedClassifier.load(folder / "router")
