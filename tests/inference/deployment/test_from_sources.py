"""RoutedClassifier.from_sources: the average by hand, doubt without validation, files, and label noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyro_smat.episodes import EpisodeSampler, glyph_pool
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.baselines import ComposedLibrary, WeightedSourceAverage
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources

NOISE = {"kind": "label_noise", "fraction": 0.4}


def classifier(**options: object) -> RoutedClassifier:
    return RoutedClassifier.from_sources(
        shipped_glyph_sources(),
        network=glyph_network(),
        image_shape=(1, 32, 32),
        **options,  # type: ignore[arg-type]  # options of tests
    )


def sampler(shot: int = 5, **options: object) -> EpisodeSampler:
    return EpisodeSampler(glyph_pool("validation"), 5, shot, 8, **options)  # type: ignore[arg-type]


def accuracy(made: RoutedClassifier, stream: EpisodeSampler, episodes: int) -> float:
    hits = []
    for _ in range(episodes):
        episode = stream.episode()
        task = made.adapt(episode.support.images, episode.support.labels.tolist())
        found = torch.tensor(task.predict(episode.query.images))
        hits.append((found == episode.query.labels).float().mean())
    return torch.stack(hits).mean().item()


def test_it_is_the_weighted_average_of_all_sources(tmp_path: Path) -> None:
    made = classifier(label_noise=0.0, temperature=0.3)
    made.save(tmp_path)
    again = RoutedClassifier.load(tmp_path)
    model = made.router.model
    composed = ComposedLibrary.of(model)
    baseline = WeightedSourceAverage(composed, temperature=0.3)
    batch = SourceFeatures(model.network, model.source_basis).attach(sampler(seed=4).sample(3))
    expected = baseline(batch)
    for b in range(3):
        episode = batch.episode(b)
        for one in (made, again):
            task = one.adapt(episode.support.images, episode.support.labels.tolist())
            found = task.predict_proba(episode.query.images)
            # the posterior predictive sums the catalog up to a mass of .99
            torch.testing.assert_close(torch.as_tensor(found), expected[b], rtol=0.05, atol=0.02)


def test_doubt_without_validation() -> None:
    made = classifier()
    clean, one_shot = sampler(seed=1).episode(), sampler(1, seed=1).episode()
    labels = clean.support.labels.tolist()
    assert made.adapt(clean.support.images, labels).reliable
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    assert made.adapt(clean.support.images, [labels[i] for i in shuffled]).abstains
    assert made.adapt(torch.rand(25, 1, 32, 32, generator=torch.Generator().manual_seed(0)), labels).abstains
    single = made.adapt(one_shot.support.images, one_shot.support.labels.tolist())
    assert single.abstains  # nothing can be left out
    assert "not reliable" in str(single.explain())


def test_labels_that_are_wrong_cost_less() -> None:
    gained = {}
    for noise in (0.0, 0.1):
        made = classifier(label_noise=noise)
        gained[noise] = [accuracy(made, sampler(seed=7, corruptions=c), 20) for c in ((), (NOISE,))]
    assert gained[0.1][1] > gained[0.0][1] + 0.08
    assert gained[0.1][0] > gained[0.0][0] - 0.02


@pytest.mark.slow
def test_validation_fits_the_temperature_and_what_a_task_says_of_itself() -> None:
    made = classifier(validation=sampler(seed=2, corruptions=({**NOISE, "probability": 0.5},)))
    assert made.router.guide.temperature_scale != 1
    assert made.deployment.reliability is not None
    assert made.deployment.reliability.learned_from


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match="no network 'mobilenet_v3'; did you mean 'mobilenet_v2'"):
        RoutedClassifier.from_sources(shipped_glyph_sources(), network="mobilenet_v3", image_shape=(1, 32, 32))


@pytest.mark.parametrize("transduction", [0.0, 0.5])
def test_other_heads_are_deployed_and_saved_as_evaluated(tmp_path: Path, transduction: float) -> None:
    made = classifier(classifier="mixture", metric="bhattacharyya", transduction=transduction)
    made.save(tmp_path)
    again = RoutedClassifier.load(tmp_path)
    model, guide = made.router.model, made.router.guide
    batch = SourceFeatures(model.network, model.source_basis).attach(sampler(seed=4).sample(2))
    with torch.no_grad():
        posterior = guide.posterior(batch).routing_probabilities()  # (B, R)
        single = torch.eye(5).unsqueeze(1).expand(-1, 2, -1)
        likelihoods = model.logits(single, batch).softmax(-1)  # (R, B, Q, W)
    expected = torch.einsum("br,rbqw->bqw", posterior, likelihoods)
    for b in range(2):
        episode = batch.episode(b)
        for one in (made, again):
            task = one.adapt(episode.support.images, episode.support.labels.tolist())
            found = torch.as_tensor(task.predict_proba(episode.query.images))
            torch.testing.assert_close(found, expected[b], rtol=0.05, atol=0.02)
            alone = torch.as_tensor(task.predict_proba(episode.query.images[:1]))
            assert torch.allclose(alone[0], found[0], atol=1e-5) == (transduction == 0)


def test_a_tolerance_that_is_asked_for_is_kept_with_validation_and_without() -> None:
    few = EpisodeSampler(glyph_pool("validation"), 2, 2, 1)
    for options, risk in (({}, "support_error"), ({"validation": few}, "learned")):
        reliability = classifier(tolerance=0.01, **options).deployment.reliability
        assert reliability is not None
        assert reliability.tolerance == 0.01
        assert reliability.predictor.name == risk


def test_networks_that_normalise_by_their_batch_are_named() -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.BatchNorm1d(6, track_running_stats=False)
    )
    with pytest.warns(UserWarning, match="answers to a query depend on which others it is asked with"):
        RoutedClassifier.from_sources({"a": network, "b": network}, network=network, image_shape=(1, 8, 8))
