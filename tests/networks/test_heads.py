"""Prototype heads against loops over classes and shots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_smat.networks.heads import (
    METRICS,
    LeaveOneOut,
    Metric,
    class_sums,
    leave_one_out_logits,
    leave_one_out_loss,
    prototype_logits,
    prototypes,
    similarities,
)

SCALE = 7.0
Support = tuple[Tensor, Tensor, Tensor, Tensor]


def similarity_by_hand(a: Tensor, b: Tensor, metric: Metric) -> float:
    if metric != "euclidean":
        return float((a * b).sum() / math.sqrt(float((a * a).sum()) * float((b * b).sum())))
    return -float(((a - b) ** 2).sum()) / len(a)


def seen(feature: Tensor, metric: Metric) -> Tensor:
    """What a metric compares: signed square roots, or the features themselves."""
    return feature.sign() * feature.abs().sqrt() if metric == "bhattacharyya" else feature


def support(seed: int = 0) -> Support:
    """Two episodes: 3-way with 4, 1 and 2 shots; 2-way with 3 and 2 shots, padded to 7 shots and 3 classes."""
    features = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([[0, 2, 0, 1, 0, 2, 0], [1, 0, 1, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    class_mask = torch.tensor([[True, True, True], [True, True, False]])
    return features, labels, mask, class_mask


def shots_of(b: int, k: int, labels: Tensor, mask: Tensor) -> list[int]:
    return [i for i in range(labels.shape[1]) if mask[b, i] and labels[b, i] == k]


def test_prototypes_are_class_means() -> None:
    features, labels, mask, _ = support()
    sums, counts = class_sums(features, labels, mask, 3)
    centres = prototypes(features, labels, mask, 3)
    assert counts.tolist() == [[4, 1, 2], [3, 2, 0]]
    for b in range(2):
        for k in range(3):
            members = shots_of(b, k, labels, mask)
            total = sum((features[b, i] for i in members), torch.zeros(5, dtype=torch.float64))
            torch.testing.assert_close(sums[b, k], total)
            torch.testing.assert_close(centres[b, k], total / max(len(members), 1))


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_and_logits_by_hand(metric: Metric) -> None:
    features, labels, mask, class_mask = support()
    queries = torch.randn(2, 4, 5, dtype=torch.float64)
    logits = prototype_logits(features, labels, mask, queries, class_mask, SCALE, metric)
    assert logits.shape == (2, 4, 3)
    for b in range(2):
        for k in range(3):
            members = shots_of(b, k, labels, mask)
            for q in range(4):
                if not members:
                    assert logits[b, q, k] == -1e4
                    continue
                centre = torch.stack([seen(features[b, i], metric) for i in members]).mean(0)
                expected = SCALE * similarity_by_hand(seen(queries[b, q], metric), centre, metric)
                assert logits[b, q, k].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="metric is 'manhattan'"):
        similarities(queries, queries, "manhattan")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", METRICS)
def test_leave_one_out_equals_removing_each_shot(metric: Metric) -> None:
    features, labels, mask, class_mask = support()
    logits = leave_one_out_logits(features, labels, mask, class_mask, SCALE, metric)
    losses = leave_one_out_loss(features, labels, mask, class_mask, SCALE, metric)
    for b, way in ((0, 3), (1, 2)):
        total, real = 0.0, mask[b].nonzero().flatten().tolist()
        for i in real:
            row = []
            for k in range(way):
                members = [j for j in shots_of(b, k, labels, mask) if j != i]
                if not members:  # alone in its class: the centre of all shots of the episode
                    assert labels[b, i] == k
                    members = real
                centre = torch.stack([seen(features[b, j], metric) for j in members]).mean(0)
                row.append(SCALE * similarity_by_hand(seen(features[b, i], metric), centre, metric))
            torch.testing.assert_close(logits[b, i, :way], torch.tensor(row, dtype=torch.float64))
            total -= row[labels[b, i]] - math.log(sum(math.exp(v) for v in row))
        assert (logits[b, :, way:] == -1e4).all()
        assert losses[b].item() == pytest.approx(total / len(real), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_many_shots_need_no_products_of_pairs(metric: Metric) -> None:
    """Seven shots of five features, and of twenty, fifteen of which are zero."""
    features, *rest = support()
    weights = torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * rest[1]
    found = [LeaveOneOut(f, *rest, metric) for f in (features, torch.nn.functional.pad(features, (0, 15)))]
    logits, wide = (one.logits(weights, SCALE) for one in found)
    assert "products" not in found[0].__dict__
    factor = 4 if metric == "euclidean" else 1  # a mean over features
    torch.testing.assert_close(logits, torch.where(wide == -1e4, wide, factor * wide))


@pytest.mark.parametrize("metric", METRICS)
def test_leave_one_out_with_weights_equals_weighted_means_of_the_other_shots(metric: Metric) -> None:
    """Weights are of the shots in the centres; they change neither which shots are alone nor what is compared."""
    features, labels, mask, class_mask = support(1)
    weights = 0.05 + 2 * torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = leave_one_out_logits(features, labels, mask, class_mask, SCALE, metric, weights)
    for b, way in ((0, 3), (1, 2)):
        real = mask[b].nonzero().flatten().tolist()
        for i in real:
            for k in range(way):
                members = [j for j in shots_of(b, k, labels, mask) if j != i] or real
                total = sum((weights[b, j] * seen(features[b, j], metric) for j in members), torch.zeros(5).double())
                centre = total / sum(float(weights[b, j]) for j in members)
                expected = SCALE * similarity_by_hand(seen(features[b, i], metric), centre, metric)
                assert logits[b, i, k].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert (logits[b, :, way:] == -1e4).all()
    halved = leave_one_out_logits(features, labels, mask, class_mask, SCALE, metric, weights / 2)
    torch.testing.assert_close(halved, logits)  # means know no unit of weight
    assert not torch.allclose(logits, leave_one_out_logits(features, labels, mask, class_mask, SCALE, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_whose_other_shots_weigh_nothing_is_empty(metric: Metric) -> None:
    """In float32 a sum that consists of the shot that is left out leaves rounding, which is no centre."""
    features, labels, mask, class_mask = support(1)
    features, weights = 30 * features.float(), torch.ones(2, 7)
    weights[:, 1:] *= labels[:, 1:] != labels[:, :1]
    found = leave_one_out_logits(features, labels, mask, class_mask, 1.0, metric, weights)[:, 0]
    own = found.gather(-1, labels[:, :1]).squeeze(-1)
    shot = features[:, 0].square().mean(-1)
    torch.testing.assert_close(own, -shot if metric == "euclidean" else torch.zeros(2))


@pytest.mark.parametrize("metric", METRICS)
def test_padding_never_matters(metric: Metric) -> None:
    features, labels, mask, class_mask = support()
    queries = torch.randn(2, 4, 5, dtype=torch.float64)
    garbage, names = features.clone(), labels.clone()
    garbage[1, 5:] = torch.tensor([[1e3] * 5, [-1e-3] * 5], dtype=torch.float64)
    names[1, 5:] = torch.tensor([1, 2])  # 2 is not even a class of this episode
    garbage = torch.cat([garbage, torch.full((2, 3, 5), 50.0, dtype=torch.float64)], dim=1)
    names = torch.cat([names, torch.ones(2, 3, dtype=torch.long)], dim=1)
    wider = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    more_ways = torch.cat([class_mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    plain = prototype_logits(features, labels, mask, queries, class_mask, SCALE, metric)
    padded = prototype_logits(garbage, names, wider, queries, more_ways, SCALE, metric)
    torch.testing.assert_close(padded[..., :3], plain)
    assert (padded[..., 3:] == -1e4).all()
    torch.testing.assert_close(
        leave_one_out_loss(garbage, names, wider, more_ways, SCALE, metric),
        leave_one_out_loss(features, labels, mask, class_mask, SCALE, metric),
    )
    alone = leave_one_out_loss(features[1:, :5], labels[1:, :5], mask[1:, :5], class_mask[1:, :2], SCALE, metric)
    torch.testing.assert_close(leave_one_out_loss(features, labels, mask, class_mask, SCALE, metric)[1:], alone)


@pytest.mark.parametrize("metric", METRICS)
def test_padding_gets_no_gradient_and_nothing_is_nan(metric: Metric) -> None:
    features, labels, mask, class_mask = support()
    leaf = features.clone()
    leaf[1, 5:] = 0.0  # what collate pads with
    leaf.requires_grad_()
    leave_one_out_loss(leaf, labels, mask, class_mask, SCALE, metric).sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[1, 5:].any()
    assert leaf.grad[mask].any(-1).all()


def test_one_shot_supports_get_the_centre_of_all_shots() -> None:
    """Every shot is alone in its class: its own class is scored against the mean of the episode, as documented."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    logits = leave_one_out_logits(features, torch.tensor([0, 1]), torch.ones(2).bool(), torch.ones(2).bool(), 10.0)
    own = 10 / math.sqrt(2)
    torch.testing.assert_close(logits, torch.tensor([[own, 0.0], [0.0, own]]))
    loss = leave_one_out_loss(features, torch.tensor([0, 1]), torch.ones(2).bool(), torch.ones(2).bool(), 10.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-own)), rel=1e-3)


def test_labels_and_masks_broadcast_over_leading_dims_and_relabelling_permutes_the_columns() -> None:
    features, labels, mask, class_mask = support()
    particles = torch.stack([features, 2 * features + 1, -features])  # (K, B, S, f)
    queries = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    together = prototype_logits(particles, labels, mask, queries, class_mask)
    alone = leave_one_out_loss(particles, labels, mask, class_mask)
    assert together.shape == (3, 2, 4, 3)
    for k in range(3):
        torch.testing.assert_close(
            together[k], prototype_logits(particles[k], labels, mask, queries[k], class_mask), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(alone[k], leave_one_out_loss(particles[k], labels, mask, class_mask))
    permutation = torch.tensor([2, 0, 1])  # class k becomes permutation[k]
    renamed = prototype_logits(features[:1], permutation[labels[:1]], mask[:1], queries[0, :1], class_mask[:1])
    torch.testing.assert_close(
        renamed[..., permutation], prototype_logits(features[:1], labels[:1], mask[:1], queries[0, :1], class_mask[:1])
    )
