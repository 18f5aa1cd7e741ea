"""Example tasks show what adapt() answers on the very episodes of the stream, with pictures of the very images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.corruptions.label_noise import LabelNoise
from pyro_smat.episodes.readers.glyphs import ATTRIBUTES, glyph_pool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.router import build_router
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.report.examples import example_tasks, png_uri


def pixels_of(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


@pytest.fixture(scope="module")
def classifier() -> RoutedClassifier:
    return RoutedClassifier(build_router(RunConfig(experts={"count": 0})))


def test_an_example_is_the_task_of_its_episode(classifier: RoutedClassifier) -> None:
    pool = glyph_pool("validation")
    options = {"seed": 3, "corruptions": [LabelNoise(0.4)]}
    found = example_tasks(
        classifier, EpisodeSampler(pool, 3, 4, 2, **options), "noisy", count=2, route_names=ATTRIBUTES
    )
    again = EpisodeSampler(pool, 3, 4, 2, **options)
    assert len(found) == 2
    for example in found:
        episode = again.episode()
        task = classifier.adapt(episode.support.images, episode.support.labels)
        p = task.predict_proba(episode.query.images)
        assert example.accuracy == pytest.approx(float((p.argmax(1) == episode.query.labels).float().mean()))
        assert example.true_route == ATTRIBUTES[episode.route]
        assert example.reliable == task.reliable
        weights = zip(classifier.source_names, task.posterior.source_weights[0].tolist(), strict=True)
        assert dict(example.routes) == pytest.approx({n: w for n, w in weights if w >= 0.01})
        wrong = 0
        for k, shown in enumerate(example.classes):
            row = int((episode.query.labels == k).nonzero()[0])
            assert shown.name == episode.class_names[k]
            assert shown.answer == episode.class_names[int(p[row].argmax())]
            assert shown.probability == pytest.approx(float(p[row].max()))
            assert shown.right == (shown.answer == shown.name)
            expected = (episode.query.images[row, 0] * 255).round().byte().numpy()
            assert (pixels_of(shown.query.source) == expected).all()
            shots = (episode.support.labels == k).nonzero().flatten()[:5]
            true = pool.labels[episode.support.rows[shots], episode.route].tolist()
            own = [pool.class_names[episode.route][t] != shown.name for t in true]
            assert [shot.wrong for shot in shown.support] == own
            wrong += sum(own)
        assert wrong > 0


def test_large_colour_images_become_small_pngs() -> None:
    made = pixels_of(png_uri(torch.rand(3, 200, 100)))
    assert made.shape == (64, 32, 3)
