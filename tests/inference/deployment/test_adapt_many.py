"""adapt_many: a stream of tasks has the numbers of one by one, with less work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_run import tiny_config, tiny_pool, tiny_router

from pyro_smat.inference.decision import Deployment
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.networks.features import SourceFeatures

DEPLOYMENT = Deployment(reliability=Reliability(risk="support_loss", tolerance=1.0))


@pytest.fixture(scope="module", params=["catalog", "logistic_normal"])
def classifier(request: pytest.FixtureRequest) -> RoutedClassifier:
    return RoutedClassifier(tiny_router(tiny_config([f"guide.kind={request.param}"])), DEPLOYMENT, cache_size=0)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def supports() -> Iterator[tuple[torch.Tensor, list[str]]]:
    for seed in range(7):  # of two sizes and ways
        yield (images(9, seed), ["b", "a", "c"] * 3) if seed % 3 else (images(4, seed), ["x", "y"] * 2)


def same(task: object, alone: object, queries: torch.Tensor) -> None:
    for name in ("risk", "misrouting"):
        left, right = getattr(task, name), getattr(alone, name)
        assert left == pytest.approx(right, abs=1e-5, nan_ok=True)
    torch.testing.assert_close(
        task.predict_proba(queries),
        alone.predict_proba(queries),
        rtol=1e-4,
        atol=1e-5,  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_pairs_of_images_and_labels(classifier: RoutedClassifier, at_once: int) -> None:
    found = list(classifier.adapt_many(supports(), at_once=at_once))
    alone = [classifier.adapt(x, y) for x, y in supports()]
    assert [one.classes for one in found] == [other.classes for other in alone]
    for one, other in zip(found, alone, strict=True):
        same(one, other, images(3, 99))


def test_batches_of_a_pool_from_cached_features(classifier: RoutedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, router = tiny_pool(), classifier.router
    batch = router.config.episodes.sampler(pool, seed=3).sample(5)
    alone = [classifier.adapt(e.support.images, e.support.labels) for e in (batch.episode(i) for i in range(5))]
    features = router.features(pool)
    features.attach(batch)
    embedded: list[int] = []
    monkeypatch.setattr(SourceFeatures, "__call__", lambda self, images: embedded.append(len(images)))
    found = list(classifier.adapt_many([batch], features=features, at_once=2))
    assert not embedded  # no source has run again
    assert [one.classes for one in found] == list(batch.class_names)
    for one, other in zip(found, alone, strict=True):
        same(one, other, images(3, 99))


def test_it_is_a_stream(classifier: RoutedClassifier) -> None:
    read = []

    def endless() -> Iterator[tuple[torch.Tensor, list[str]]]:
        while True:
            read.append(1)
            yield images(4, len(read)), ["x", "y"] * 2

    tasks = classifier.adapt_many(endless(), at_once=4)
    for _ in range(5):
        next(tasks)
    assert len(read) == 8
    with pytest.raises(ValueError, match="at_once is 0"):
        next(classifier.adapt_many(endless(), at_once=0))
    with pytest.raises(ValueError, match="the one class 'x'"):
        list(classifier.adapt_many([(images(4, 0), ["x"] * 4)]))


def test_labels_come_back_as_they_went_in() -> None:
    """Integers as integers, of a stream as of one task."""
    classifier = RoutedClassifier(tiny_router(tiny_config(())))
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    stream = [(images, [7, 3, 7, 3]), (images.numpy(), ["b", "a", "b", "a"]), (images, torch.tensor([0, 1, 1, 0]))]
    tasks = list(classifier.adapt_many(stream))
    assert [task.classes for task in tasks] == [(3, 7), ("a", "b"), (0, 1)]
    for task, (pixels, labels) in zip(tasks, stream, strict=True):
        alone = classifier.adapt(pixels, labels)
        assert task.classes == alone.classes
        assert task.predict(pixels) == alone.predict(pixels)


def test_the_support_at_fault_is_named(classifier: RoutedClassifier) -> None:
    """By its number among all that were given, pairs and batches alike."""
    good, bad = (images(4, 0), ["x", "y"] * 2), (images(4, 1), ["x"] * 3)
    batch = classifier.router.config.episodes.sampler(tiny_pool(), seed=3).sample(2)
    for supports, number in (([good, bad], 1), ([bad, good], 0), ([batch, good, good, bad], 4)):
        with pytest.raises(ValueError, match=rf"^support {number}: got 4 images and 3 labels"):
            list(classifier.adapt_many(supports))
    with pytest.raises(ValueError, match=r"^got 4 images and 3 labels"):
        list(classifier.adapt_many([bad]))
    assert len(list(classifier.adapt_many([batch, good, good]))) == 4


@pytest.mark.parametrize(
    ("supports", "message"),
    [
        ({"a": (images(4, 0), [0, 1] * 2)}, r"supports are a mapping; .*adapt_many\(supports\.values\(\)\)"),
        ((images(4, 0), [0, 1] * 2), r"support 0 is a Tensor of 4; .* for one support, \[\(images, labels\)\]"),
        ([(images(4, 0), [0, 1] * 2), 7], r"support 1 is a int; expected a pair"),
    ],
)
def test_anything_but_pairs_is_refused(classifier: RoutedClassifier, supports: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(classifier.adapt_many(supports))
