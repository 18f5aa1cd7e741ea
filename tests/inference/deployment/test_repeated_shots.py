"""Copies among the shots say nothing new."""

from __future__ import annotations

import pytest
import torch

from pyro_smat import EpisodeSampler, RoutedClassifier, glyph_pool
from pyro_smat.episodes.readers.duplicates import DuplicateWarning
from pyro_smat.inference.deployment.repeated_shots import without_repeats
from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources


def test_a_support_of_copies_is_the_support_and_as_uncertain() -> None:
    router = RoutedClassifier.from_sources(shipped_glyph_sources(), network=glyph_network(), image_shape=(1, 32, 32))
    support = EpisodeSampler(glyph_pool("validation"), 5, 1, 1, seed=3).episode().support
    alone = router.adapt(support.images, support.labels)
    with pytest.warns(DuplicateWarning, match="15 of 20 shots repeat others"):
        copied = router.adapt(support.images.repeat(4, 1, 1, 1), support.labels.repeat(4))
    assert copied is alone  # from the cache
    pairs = [(support.images.repeat(2, 1, 1, 1), support.labels.repeat(2))]
    with pytest.warns(DuplicateWarning, match="5 of 10"):
        (many,) = router.adapt_many(pairs)
    assert many.risk == pytest.approx(alone.risk)


def test_noise_that_is_repeated_is_not_reliable() -> None:
    router = RoutedClassifier.from_sources(shipped_glyph_sources(), network=glyph_network(), image_shape=(1, 32, 32))
    noise = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.warns(DuplicateWarning):
        task = router.adapt(noise.repeat(4, 1, 1, 1), list(range(5)) * 4)
    assert not task.reliable


def test_copies_with_another_label_stay() -> None:
    images = torch.rand(2, 3, 4, 4)
    kept, labels = without_repeats(images[[0, 1, 0]], [0, 1, 1])
    assert labels == [0, 1, 1]
    assert torch.equal(kept, images[[0, 1, 0]])
