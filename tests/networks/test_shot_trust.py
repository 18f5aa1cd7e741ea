"""Shot trust: against leave-one-out logits, flipped labels found, and what must not change it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pyro_smat.networks.heads import METRICS, Metric, leave_one_out_logits
from pyro_smat.networks.shot_trust import ShotTrust, shot_trust

WAY, SHOT = 5, 5
CLASSES = torch.ones(WAY, dtype=torch.bool)


def clusters(flipped: Sequence[int] = (), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features ``(25, 16)`` around five centres, labels with some of them moved to the next class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(WAY, 16, generator=generator, dtype=torch.float64)
    labels = torch.arange(WAY).repeat_interleave(SHOT)
    features = centres[labels] + 0.2 * torch.randn(len(labels), 16, generator=generator, dtype=torch.float64)
    labels[list(flipped)] = (labels[list(flipped)] + 1) % WAY
    return features, labels


def found(features: Tensor, labels: Tensor, noise: float = 0.1, metric: Metric = "cosine") -> ShotTrust:
    return shot_trust(features, labels, labels >= 0, CLASSES, noise, 10.0, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_without_noise_it_is_the_leave_one_out_likelihood(metric: Metric) -> None:
    features, labels = clusters([3, 11])
    mask = torch.arange(len(labels)) != 7
    trusted = shot_trust(features, labels, mask, CLASSES, 0.0, 10.0, metric)
    logits = leave_one_out_logits(features, labels, mask, CLASSES, 10.0, metric)
    expected = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(trusted.trust, mask.double())
    torch.testing.assert_close(trusted.evidence[mask], expected[mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_flipped_labels_are_found(metric: Metric) -> None:
    flipped = [1, 7, 8, 13, 24]
    features, labels = clusters(flipped)
    result = found(features, labels, metric=metric)
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[flipped] = True
    assert (result.trust[wrong] < 0.5).all()
    assert (result.trust[~wrong] > 0.5).all()
    assert 0.1 < float(result.label_noise) < 0.25  # 5 of 25, drawn to the expected tenth


def test_clean_supports_stay_as_they_are() -> None:
    result = found(*clusters())
    assert (result.trust > 0.95).all()
    assert float(result.label_noise) < 0.05


def test_evidence_is_bounded_by_the_noise() -> None:
    result = found(*clusters([0, 1, 2]))
    assert (result.evidence > torch.log(result.label_noise / WAY) - 1e-9).all()


def test_order_names_and_padding_change_nothing() -> None:
    features, labels = clusters([2, 9])
    expected = found(features, labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    names = torch.tensor([3, 0, 4, 1, 2])
    moved = found(features[order], names[labels][order])
    torch.testing.assert_close(moved.trust, expected.trust[order])
    longer = torch.cat([features, torch.randn(3, 16, dtype=torch.float64)])
    mask = torch.arange(len(longer)) < len(labels)
    padded = shot_trust(longer, torch.cat([labels, torch.zeros(3, dtype=torch.long)]), mask, CLASSES, 0.1)
    torch.testing.assert_close(padded.trust[mask], expected.trust)
    assert (padded.trust[~mask] == 0).all()
    torch.testing.assert_close(padded.label_noise, expected.label_noise)


def test_many_at_once_are_as_one_by_one() -> None:
    pairs = [clusters([seed, seed + 6], seed) for seed in range(3)]
    features, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
    together = shot_trust(features, labels, labels >= 0, CLASSES.expand(3, -1), 0.1)
    for k, (own, known) in enumerate(pairs):
        torch.testing.assert_close(together.trust[k], found(own, known).trust)
        torch.testing.assert_close(together.evidence[k], found(own, known).evidence)


def test_one_shot_is_finite() -> None:
    features, labels = clusters()
    result = found(features[::SHOT], labels[::SHOT])
    assert torch.isfinite(result.evidence).all()
    assert (result.trust > 0).all()


def test_gradients_are_finite_where_features_are_zero() -> None:
    features, labels = clusters([4])
    features[3] = 0
    features.requires_grad_()
    found(features, labels).evidence.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("noise", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="label_noise is"):
        found(*clusters(), noise=noise)
