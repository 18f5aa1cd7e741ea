"""RoutedClassifier: a saved router is the router; adapting, predicting, abstaining and explaining; bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_smat.config import RunConfig, load_config
from pyro_smat.episodes import Episode, EpisodeBatch
from pyro_smat.guides import LogisticNormalGuide
from pyro_smat.inference.assembly import build_router, open_library
from pyro_smat.inference.classifier import AbstentionRule, RoutedClassifier
from pyro_smat.inference.decision import RULES, predict
from pyro_smat.models import RoutedModel

FAMILIES = ("logistic_normal", "catalog", "concrete")


def config_of(family: str) -> RunConfig:
    return load_config(None, [f"guide.family={family}", "experts.count=2", "decision.draws=3"])


def support() -> tuple[Tensor, list[str]]:
    images = torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, ["b", "a", "c"] * 3


@pytest.fixture(scope="module", params=FAMILIES)
def classifier(request: pytest.FixtureRequest) -> RoutedClassifier:
    config = config_of(request.param)
    router = build_router(config, torch.device("cpu"), open_library(config))
    torch.manual_seed(1)
    for parameter in (*router.model.parameters(), *router.guide.parameters()):  # as if trained
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return RoutedClassifier(router, AbstentionRule("entropy", 10.0, 0.9))


def test_a_saved_router_predicts_the_same_bits(classifier: RoutedClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    again = RoutedClassifier.load(tmp_path)
    images, labels = support()
    queries = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    before, after = classifier.adapt(images, labels), again.adapt(images, labels)
    assert torch.equal(before.predict_proba(queries), after.predict_proba(queries))
    assert torch.equal(before.posterior.mean, after.posterior.mean)
    assert again.abstention == classifier.abstention
    assert str(before.explain()) == str(after.explain())


class MyModel(RoutedModel):
    """The library's, with a flatter likelihood."""

    def logits(self, coefficients: Tensor, batch: EpisodeBatch, basis: Tensor | None = None) -> Tensor:
        return super().logits(coefficients, batch, basis) / 4


class MyGuide(LogisticNormalGuide):
    pass


@pytest.mark.parametrize(("what", "given"), [("model", MyModel), ("guide", MyGuide)])
def test_a_router_that_was_given_a_class_asks_for_it_at_load(what: str, given: type, tmp_path: Path) -> None:
    """The config does not name it, so the folder has to: the library's class would fit its tensors, and be another."""
    config = config_of("logistic_normal")
    classes: dict[str, Any] = {f"{what}_class": given}
    classifier = RoutedClassifier(build_router(config, torch.device("cpu"), open_library(config), **classes))
    classifier.save(tmp_path)
    with pytest.raises(ValueError, match=rf"with a {what} of your own, {given.__name__}; pass {what}_class= that cl"):
        RoutedClassifier.load(tmp_path)
    again = RoutedClassifier.load(tmp_path, **classes)
    assert type(getattr(again.router, what)) is given
    queries = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    found, expected = (c.adapt(*support()).predict_proba(queries) for c in (again, classifier))
    assert torch.equal(found, expected)


def test_predictions_are_those_of_the_model(classifier: RoutedClassifier) -> None:
    images, labels = support()
    queries = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    task = classifier.adapt(images, labels)
    assert task.classes == ("a", "b", "c")
    target = torch.tensor([1, 0, 2] * 3)
    batch = EpisodeBatch.collate([Episode(images, target, queries, torch.zeros(4, dtype=torch.long), 3)])
    for rule in RULES:
        expected = predict(
            classifier.router.model,
            task.posterior,
            batch,
            rule,
            draws=3,
            generator=torch.Generator().manual_seed(0),
        )[0]
        torch.testing.assert_close(task.predict_proba(queries, rule), expected, rtol=1e-4, atol=1e-6)


def test_one_image_and_the_order_of_shots(classifier: RoutedClassifier) -> None:
    images, labels = support()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    one = torch.rand(1, 1, 32, 32)
    straight = classifier.adapt(images, labels).predict_proba(one, "mean")
    shuffled = classifier.adapt(images[order], [labels[i] for i in order]).predict_proba(one, "mean")
    assert straight.shape == (1, 3)
    torch.testing.assert_close(straight, shuffled, rtol=1e-4, atol=1e-5)


def test_abstaining_falls_back_to_source_0(classifier: RoutedClassifier) -> None:
    images, labels = support()
    queries = torch.rand(2, 1, 32, 32)
    unsure = RoutedClassifier(classifier.router, AbstentionRule("confidence", -1.0, 0.0)).adapt(images, labels)
    assert unsure.abstains
    assert torch.equal(unsure.predict_proba(queries), unsure.predict_proba(queries, "fallback"))
    explained = unsure.explain()
    assert explained.rule == "fallback"
    assert explained.networks == 1
    assert not classifier.adapt(images, labels).abstains


def test_explanation_adds_up(classifier: RoutedClassifier) -> None:
    explained = classifier.adapt(*support()).explain()
    weights = {c.name: c.weight for c in explained.components}
    assert list(weights)[:5] == ["generalist", "letter", "face", "rotation", "style"]
    assert sum(list(weights.values())[:5]) == pytest.approx(1, abs=1e-5)
    budget = classifier.router.model.experts.budget  # type: ignore[union-attr]
    assert all(c.coordinates <= budget for c in explained.components[5:])
    assert all(c.low <= c.high for c in explained.components)


@pytest.mark.parametrize("score", ["confidence", "entropy", "variance", "support loss"])
def test_every_score_of_an_abstention_rule_is_a_number(classifier: RoutedClassifier, score: str) -> None:
    task = RoutedClassifier(classifier.router, AbstentionRule(score, 0.0, 0.5)).adapt(*support())
    assert task.uncertainty == task.uncertainty
    assert task.abstains == (task.uncertainty > 0)


def test_bad_supports_and_queries(classifier: RoutedClassifier) -> None:
    images, labels = support()
    with pytest.raises(ValueError, match="9 images and 8 labels"):
        classifier.adapt(images, labels[:-1])
    with pytest.raises(ValueError, match="one class"):
        classifier.adapt(images, ["a"] * 9)
    with pytest.raises(ValueError, match="NaN"):
        classifier.adapt(images.clone().index_fill_(0, torch.tensor(3), torch.nan), labels)
    with pytest.raises(ValueError, match="3 channels"):
        classifier.adapt(images.expand(-1, 3, -1, -1), labels)
    task = classifier.adapt(images, labels)
    with pytest.raises(ValueError, match=r"\(1, 16, 16\)"):
        task.predict_proba(torch.rand(1, 1, 16, 16))


def test_damaged_folders(classifier: RoutedClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"router\.json"):
        RoutedClassifier.load(tmp_path)
    classifier.save(tmp_path)
    description = json.loads((tmp_path / "router.json").read_text())
    (tmp_path / "router.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(ValueError, match="format is 99"):
        RoutedClassifier.load(tmp_path)
    (tmp_path / "router.json").write_text(json.dumps(description))
    tensors = load_file(tmp_path / "router.safetensors")
    lacking = {k: v for k, v in tensors.items() if not k.startswith("guide.")}
    save_file(lacking, tmp_path / "router.safetensors")
    with pytest.raises(ValueError, match="guide does not fit"):
        RoutedClassifier.load(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "sources"}, tmp_path / "router.safetensors")
    with pytest.raises(ValueError, match="sources are missing"):
        RoutedClassifier.load(tmp_path)
    if "catalog" in tensors:
        save_file({k: v for k, v in tensors.items() if k != "catalog"}, tmp_path / "router.safetensors")
        with pytest.raises(ValueError, match="the catalog of 10 routings is missing"):
            RoutedClassifier.load(tmp_path)
