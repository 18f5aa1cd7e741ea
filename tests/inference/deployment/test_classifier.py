"""RoutedClassifier: a saved router is the router; adapting, predicting, abstaining and explaining; bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config, tiny_router
from torch import Tensor

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.inference.assembly.config import RunConfig, load_config
from pyro_smat.inference.assembly.router import build_router, open_library
from pyro_smat.inference.decision import Deployment, predict
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.deployment.refinement import DirichletRefinement, FrankWolfe, SupportObjective
from pyro_smat.registry import names

FAMILIES = ("logistic_normal", "catalog", "concrete")


def config_of(family: str) -> RunConfig:
    return load_config(
        None,
        [f"guide.kind={family}", "experts.count=2", "decision.rule={kind='posterior_predictive', num_samples=3}"],
    )


def support() -> tuple[Tensor, list[str]]:
    images = torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, ["b", "a", "c"] * 3


@pytest.fixture(scope="module", params=FAMILIES)
def classifier(request: pytest.FixtureRequest) -> RoutedClassifier:
    config = config_of(request.param)
    router = build_router(config, opened=open_library(config))
    torch.manual_seed(1)
    for parameter in (*router.model.parameters(), *router.guide.parameters()):  # as if trained
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return RoutedClassifier(router, Deployment(rule=config.decision.rule, threshold=10.0, coverage=0.9))


def test_predictions_are_those_of_the_model(classifier: RoutedClassifier) -> None:
    images, labels = support()
    queries = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    task = classifier.adapt(images, labels)
    assert task.classes == ("a", "b", "c")
    target = torch.tensor([1, 0, 2] * 3)
    batch = EpisodeBatch.collate([Episode(Labelled(images, target), Labelled(queries))])
    for rule in names("decision_rule"):
        asked = classifier.deployment.rule if rule == "posterior_predictive" else rule
        generator = torch.Generator().manual_seed(0)
        expected = predict(classifier.router.model, task.posterior, batch, asked, generator=generator)[0]
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
    unsure = RoutedClassifier(classifier.router, Deployment(score="least_confidence", threshold=-1.0)).adapt(
        images, labels
    )
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


@pytest.mark.parametrize("score", ["least_confidence", "entropy", "variance", "support_loss"])
def test_every_score_of_an_abstention_rule_is_a_number(classifier: RoutedClassifier, score: str) -> None:
    task = RoutedClassifier(classifier.router, Deployment(score=score, threshold=0.0)).adapt(*support())
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
    with pytest.raises(ValueError, match="without 1 or 3 channels"):
        classifier.adapt(images.expand(-1, 4, -1, -1), labels)
    task = classifier.adapt(images, labels)
    with pytest.raises(ValueError, match=r"uint8 in 0\.\.255 or floating point"):
        task.predict_proba(255 * torch.rand(1, 1, 32, 32).long())


MODES = ("frank_wolfe:steps=3", "gradient:steps=4,learning_rate=0.5", "risk_averse:steps=2", "dirichlet:draws=4")


def tiny_classifier(*overrides: str, **options: Any) -> RoutedClassifier:
    """Experts with a delta, and with decided gates, fewer of them open than the budget allows."""
    router = tiny_router(tiny_config(overrides))
    if router.model.experts is not None:
        router.model.experts.delta.data = torch.randn(325, generator=torch.Generator().manual_seed(0))
        router.model.experts.log_alpha.data.mul_(20).sub_(13)
    return RoutedClassifier(router, **options)


def tiny_support(seed: int = 0) -> tuple[Tensor, list[str]]:
    images = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return images, ["b", "a", "c"] * 3


def tiny_batch(images: Tensor, queries: Tensor) -> EpisodeBatch:
    target = torch.tensor([1, 0, 2] * 3)
    return EpisodeBatch.collate([Episode(Labelled(images, target), Labelled(queries))])


@pytest.mark.parametrize("overrides", [(), ("decision.rule=map", "guide.kind=catalog"), ("decision.gate_samples=2",)])
@pytest.mark.parametrize("refine", MODES)
def test_refined_tasks_predict_with_what_was_found(refine: str, overrides: Sequence[str]) -> None:
    classifier = tiny_classifier(*overrides)
    images, labels = tiny_support()
    queries = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    plain, task = classifier.adapt(images, labels), classifier.adapt(images, labels, refine=refine)
    model, found, batch = classifier.router.model, task.refinement, tiny_batch(images, queries)
    assert plain.refinement is None
    assert found is not None
    start = plain.posterior.mode if "decision.rule=map" in overrides else plain.posterior.mean
    objective = SupportObjective(model, model.basis(), batch, start[0])
    assert found.before == pytest.approx(objective.value(objective.start), rel=1e-5)
    with torch.no_grad():
        logits = model.logits(found.coefficients.unsqueeze(0), batch, found.basis(model, model.basis()))
    torch.testing.assert_close(task.predict_proba(queries, "refined"), logits[0].softmax(-1), rtol=1e-4, atol=1e-6)
    if found.posterior is None:
        assert task.rule == "refined"
        assert task.posterior.mean.equal(plain.posterior.mean)
        assert torch.equal(task.predict_proba(queries), task.predict_proba(queries, "refined"))
    else:
        assert task.rule == classifier.deployment.method
        assert task.posterior is found.posterior
    explained = task.explain()
    assert explained.refinement is found
    assert [c.weight for c in explained.components] == pytest.approx(found.coefficients.tolist())
    assert f"refined by {refine.partition(':')[0]}: support loss {found.before:.3f} -> {found.after:.3f}" in str(
        explained
    )
    if "gradient" in refine:
        assert found.masks is not None
        assert [c.coordinates for c in explained.components[3:]] == found.masks.sum(-1).tolist()
    else:
        assert f"gap {found.gap:.2g} (stationarity)" in str(explained)
    assert "refined" not in str(plain.explain())


@pytest.mark.parametrize("refine", MODES)
def test_refining_under_inference_mode(refine: str) -> None:
    classifier = tiny_classifier()
    with torch.inference_mode():
        images, labels = tiny_support()
        there = classifier.adapt(images, labels, refine=refine).refinement
    here = tiny_classifier().adapt(*tiny_support(), refine=refine).refinement
    assert here is not None
    assert str(there) == str(here)


def test_modes_as_objects_and_by_name() -> None:
    classifier = tiny_classifier()
    one = classifier.adapt(*tiny_support(), refine="frank-wolfe:steps=3,max_active=1")
    assert one is classifier.adapt(*tiny_support(), refine=FrankWolfe(3, 1))
    assert one is classifier.adapt(*tiny_support(), refine={"kind": "frank_wolfe", "steps": 3, "max_active": 1})
    assert one is not classifier.adapt(*tiny_support(), refine="frank-wolfe:steps=4,max_active=1")
    assert one.refinement is not None
    assert one.refinement.active == 1
    assert classifier.adapt(*tiny_support(), refine="none") is classifier.adapt(*tiny_support())


def test_the_threshold_is_for_the_posterior_of_the_router() -> None:
    classifier = tiny_classifier(deployment=Deployment(score="variance", threshold=1.0))
    plain = classifier.adapt(*tiny_support())
    refined = classifier.adapt(*tiny_support(), refine=DirichletRefinement(prior=0.01, draws=2))
    variances = [
        task.posterior.sample(4096, torch.Generator().manual_seed(0)).var(0).sum().item() for task in (plain, refined)
    ]
    assert variances[1] > 1.2 * variances[0]
    assert refined.uncertainty == plain.uncertainty
    queries = torch.rand(2, 1, 8, 8)
    unsure = tiny_classifier(deployment=Deployment(score="least_confidence", threshold=-1.0)).adapt(
        *tiny_support(), refine="frank-wolfe"
    )
    assert unsure.rule == "fallback"
    assert torch.equal(unsure.predict_proba(queries), unsure.predict_proba(queries, "fallback"))


def test_the_same_support_is_the_same_task() -> None:
    classifier = tiny_classifier()
    images, labels = tiny_support()
    task = classifier.adapt(images, labels)
    assert classifier.cache_info() == (0, 1, 8, 1)
    assert classifier.adapt(images.clone(), tuple(labels)) is task
    assert classifier.cache_info() == (1, 1, 8, 1)

    pixel, label = images.clone(), list(labels)
    pixel[4, 0, 3, 3] = torch.nextafter(pixel[4, 0, 3, 3], torch.tensor(2.0))
    label[0] = "a"
    numbers = [("b", "a", "c").index(name) for name in labels]
    others = [
        classifier.adapt(pixel, labels),
        classifier.adapt(images, label),
        classifier.adapt(images, labels, seed=1),
        classifier.adapt(images, labels, refine="frank-wolfe"),
        classifier.adapt(images, [f"{name}!" for name in labels]),
        classifier.adapt(images, numbers),
        classifier.adapt(images, [str(number) for number in numbers]),
    ]
    assert len({id(other) for other in (task, *others)}) == 8
    assert others[4].classes == ("a!", "b!", "c!")
    assert classifier.cache_info() == (1, 8, 8, 8)
    assert classifier.adapt(images, torch.tensor(numbers)) is others[5]


def test_the_cache_is_bounded_and_a_classifiers_own(tmp_path: Path) -> None:
    small, none, other = tiny_classifier(cache_size=2), tiny_classifier(cache_size=0), tiny_classifier("seed=5")
    first = small.adapt(*tiny_support(0))
    for seed in (1, 2):
        small.adapt(*tiny_support(seed))
    assert small.cache_info() == (0, 3, 2, 2)
    assert small.adapt(*tiny_support(0)) is not first
    assert none.adapt(*tiny_support()) is not none.adapt(*tiny_support())
    assert none.cache_info() == (0, 2, 0, 0)
    task = other.adapt(*tiny_support())
    assert task is not first
    assert not torch.equal(task.posterior.mean, first.posterior.mean)
    assert other.cache_info() == (0, 1, 8, 1)


def test_refinements_that_cannot_be() -> None:
    classifier = tiny_classifier("experts.count=0")
    with pytest.raises(ValueError, match="no refinement 'frank_wolf'; did you mean 'frank_wolfe'"):
        classifier.adapt(*tiny_support(), refine="frank_wolf")
    with pytest.raises(ValueError, match="refine is 3; expected a refinement"):
        classifier.adapt(*tiny_support(), refine=3)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no experts \(M = 0\)"):
            classifier.adapt(*tiny_support(), refine="gradient")
    with pytest.raises(ValueError, match="'refined' and the task was not refined"):
        classifier.adapt(*tiny_support()).predict_proba(torch.rand(1, 1, 8, 8), "refined")
