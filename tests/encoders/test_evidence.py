"""Source evidence: invariances, and every number by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from small_supports import largest_difference, supports
from torch import Tensor

from pyro_smat.encoders import EVIDENCE, EvidenceEncoder, source_evidence


def test_invariant_to_the_order_of_shots() -> None:
    features, labels, mask, class_mask = supports()
    reference = source_evidence(features, labels, mask, class_mask)
    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        moved = source_evidence(features[:, :, order], labels[:, order], mask[:, order], class_mask)
        assert largest_difference(moved, reference) <= 1e-6


def test_invariant_to_relabelling_of_classes() -> None:
    features, labels, mask, class_mask = supports()
    reference = source_evidence(features, labels, mask, class_mask)
    for b, permutation in ((0, [2, 0, 1, 3]), (0, [1, 0, 2, 3]), (1, [1, 0, 2, 3]), (2, [3, 2, 0, 1])):
        renamed = labels.clone()
        renamed[b] = torch.tensor(permutation)[labels[b]]
        assert largest_difference(source_evidence(features, renamed, mask, class_mask), reference) <= 1e-6


def test_invariant_in_float32_too() -> None:
    features, labels, mask, class_mask = supports()
    features = features.float()
    order = torch.tensor([3, 1, 0, 2, 4, 6, 5])
    moved = source_evidence(features[:, :, order], labels[:, order], mask[:, order], class_mask)
    assert largest_difference(moved, source_evidence(features, labels, mask, class_mask)) <= 1e-5


def test_ties_do_not_depend_on_the_order_of_shots() -> None:
    """Duplicate images: every shot has several nearest neighbours, of several classes."""
    base = torch.randn(1, 2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([1.0, 0.3, 1.7, 2.3, 0.9, 1.1], dtype=torch.float64)  # so that rounding differs
    features = base[:, :, [0, 0, 0, 1, 1, 1]] * lengths.unsqueeze(-1)
    labels = torch.tensor([[0, 0, 1, 1, 2, 0]])
    everything = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    reference = source_evidence(features, labels, *everything)
    column = EVIDENCE.index("share of nearest neighbours with the same label")
    shares = [1 / 2, 1 / 2, 0, 0, 0, 0]  # among the two copies of every shot
    assert reference[0, 0, column].item() == pytest.approx(sum(shares) / 6)
    for seed in range(5):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        for dtype in (torch.float64, torch.float32):
            moved = source_evidence(features[:, :, order].to(dtype), labels[:, order], *everything)
            assert largest_difference(moved.double(), reference) <= (1e-6 if dtype == torch.float64 else 1e-5)


def test_padding_never_matters() -> None:
    features, labels, mask, class_mask = supports()
    reference = source_evidence(features, labels, mask, class_mask)
    garbage, names = features.clone(), labels.clone()
    garbage[1, :, 5:], garbage[2, :, 4:] = 1e3, -4.0
    names[1, 5:], names[2, 4:] = 3, 2
    garbage = torch.cat([garbage, torch.ones(3, 3, 2, 6, dtype=torch.float64)], dim=2)
    names = torch.cat([names, torch.ones(3, 2, dtype=torch.long)], dim=1)
    wider = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    more_ways = torch.cat([class_mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert largest_difference(source_evidence(garbage, names, wider, more_ways), reference) <= 1e-9
    for b, (shots, way) in enumerate(((7, 3), (5, 2), (4, 4))):  # every episode alone, without padding
        alone = source_evidence(
            features[b : b + 1, :, :shots],
            labels[b : b + 1, :shots],
            mask[b : b + 1, :shots],
            class_mask[b : b + 1, :way],
        )
        assert largest_difference(alone[0], reference[b]) <= 1e-9


def test_equivariant_in_the_sources() -> None:
    features, labels, mask, class_mask = supports(sources=4)
    order = torch.tensor([2, 0, 3, 1])
    evidence = source_evidence(features, labels, mask, class_mask)
    moved = source_evidence(features[:, order], labels, mask, class_mask)
    assert largest_difference(moved, evidence[:, order]) <= 1e-9


def test_the_score_is_minus_trust_times_the_leave_one_out_loss() -> None:
    batch = supports()
    encoder = EvidenceEncoder(hidden=16, trust=3.0).double()
    assert dict(encoder.named_parameters())["trust"].item() == 3.0
    assert EvidenceEncoder().trust.item() == 8.0
    loss = source_evidence(*batch)[..., EVIDENCE.index("leave-one-out loss / log way")]
    score = encoder(*batch).score
    assert largest_difference(score, -3.0 * loss) <= 1e-12
    score.sum().backward()
    assert encoder.trust.grad is not None
    assert encoder.trust.grad.item() == pytest.approx(-float(loss.sum()))


def test_the_encoder_sees_the_size_of_the_support() -> None:
    batch = supports()
    encoder = EvidenceEncoder(hidden=16).double()
    with torch.no_grad():
        encoder.embed[0].weight[:, :-1] = 0.0  # blind to the evidence
    embedding = encoder(*batch).embedding
    assert largest_difference(embedding[:, 0], embedding[:, 1]) <= 1e-12
    assert largest_difference(embedding[0], embedding[1]) > 1e-4


def by_hand(features: Tensor, labels: list[int], way: int) -> list[float]:
    """The numbers of EVIDENCE for one source and one episode without padding, shot by shot in plain Python."""
    shots, n = [f / f.norm() for f in features], len(labels)
    losses, right, margins, entropies = [], [], [], []
    for i in range(n):
        logits = []
        for k in range(way):
            members = [j for j in range(n) if labels[j] == k and j != i] or list(range(n))
            centre = torch.stack([features[j] for j in members]).mean(0)
            logits.append(10 * float(shots[i] @ centre / centre.norm()))
        total = sum(math.exp(v) for v in logits)
        p = [math.exp(v) / total for v in logits]
        losses.append(-math.log(p[labels[i]]))
        rival = max(v for k, v in enumerate(logits) if k != labels[i])
        right.append(float(logits[labels[i]] > rival))
        margins.append((logits[labels[i]] - rival) / 10)
        entropies.append(-sum(q * math.log(q) for q in p))
    mean_loss = sum(losses) / n
    half = sorted(losses)[: math.ceil(n / 2)]
    centre = torch.stack(shots).mean(0)
    between = total = 0.0
    for i in range(n):
        own = torch.stack([shots[j] for j in range(n) if labels[j] == labels[i]]).mean(0)
        between += float((own - centre).square().sum())
        total += float((shots[i] - centre).square().sum())
    same, apart, neighbours, near = [], [], [], []
    for i in range(n):
        for j in range(n):
            if i != j:
                (same if labels[i] == labels[j] else apart).append(float(shots[i] @ shots[j]))
        best = max((j for j in range(n) if j != i), key=lambda j: float(shots[i] @ shots[j]))
        neighbours.append(float(labels[best] == labels[i]))
        near.append(float(shots[i] @ shots[best]))
    log_way = math.log(way)
    return [
        mean_loss / log_way,
        sum(right) / n,
        sum(half) / len(half) / log_way,
        math.sqrt(sum((v - mean_loss) ** 2 for v in losses) / n) / log_way,
        sum(margins) / n,
        sum(entropies) / n / log_way,
        between / total,
        (sum(same) / len(same) if same else 0.0) - sum(apart) / len(apart),
        sum(neighbours) / n,
        sum(near) / n,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_number_by_brute_force(seed: int) -> None:
    features, labels, mask, class_mask = supports(seed)
    features = features + 2 * torch.nn.functional.one_hot(labels, 6).unsqueeze(1)  # some structure
    evidence = source_evidence(features, labels, mask, class_mask)
    assert evidence.shape == (3, 3, len(EVIDENCE))
    for b in range(3):
        count, way = int(mask[b].sum()), int(class_mask[b].sum())
        for r in range(3):
            expected = by_hand(features[b, r, :count], labels[b, :count].tolist(), way)
            for name, ours, theirs in zip(EVIDENCE, evidence[b, r].tolist(), expected, strict=True):
                # the deviation of equal losses has a floor of 1e-4
                assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-4 if "deviation" in name else 1e-8), (b, r, name)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_degenerate_features_stay_finite_with_a_finite_gradient(value: float, dtype: torch.dtype) -> None:
    _, labels, mask, class_mask = supports()
    features = torch.full((3, 2, 7, 6), value, dtype=dtype, requires_grad=True)
    evidence = source_evidence(features, labels, mask, class_mask)
    assert evidence.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(evidence).all()
    accuracy = evidence[..., EVIDENCE.index("leave-one-out accuracy")]
    assert not accuracy.any()  # nothing is known: no shot has a positive margin, rounding apart
    evidence.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_smallest_supports_are_finite() -> None:
    for labels in ([0, 1], [0, 1, 0], [0, 0, 1, 1], [0, 1, 2]):
        way = max(labels) + 1
        features = torch.randn(1, 2, len(labels), 6)
        mask, classes = torch.ones(1, len(labels)).bool(), torch.ones(1, way).bool()
        evidence = source_evidence(features, torch.tensor([labels]), mask, classes)
        assert torch.isfinite(evidence).all()


def test_the_total_is_the_sum_over_shots_and_off_by_default() -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 3, 6, 8, generator=generator)
    labels, mask = torch.tensor([[0, 1, 0, 1, 0, 1]] * 2), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    class_mask = torch.ones(2, 2, dtype=torch.bool)
    encoder = EvidenceEncoder(hidden=4, total=True)
    assert not any("total" in name for name, _ in EvidenceEncoder(hidden=4).named_parameters())
    with torch.no_grad():
        mean = source_evidence(features, labels, mask, class_mask)[..., 0]
        torch.testing.assert_close(encoder(features, labels, mask, class_mask).score, -8 * mean)
        encoder.trust_in_total.fill_(0.5)
        total = mean * torch.tensor([[6.0], [4.0]])
        torch.testing.assert_close(encoder(features, labels, mask, class_mask).score, -8 * mean - 0.5 * total)
