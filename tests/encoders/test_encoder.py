"""What every encoder promises: invariances, room for more sources, finite gradients at degenerate supports."""

from __future__ import annotations

import pytest
import torch
from made_encoders import ENCODERS, build_encoder
from small_supports import FEATURES, largest_difference, small_encoder, supports
from torch import Tensor

from pyro_smat.encoders import Encoding, PrototypeAttentionEncoder

TOLERANCE = 1e-9
every_encoder = pytest.mark.parametrize("kind", ENCODERS)


def difference(a: Encoding, b: Encoding) -> float:
    return max(largest_difference(a.embedding, b.embedding), largest_difference(a.score, b.score))


@every_encoder
def test_shapes_and_the_score(kind: str) -> None:
    encoder = small_encoder(kind)
    encoding = encoder(*supports())
    assert encoder.hidden == 16
    assert encoding.embedding.shape == (3, 3, 16)
    assert encoding.score.shape == (3, 3)
    assert encoding.embedding.dtype == encoding.score.dtype == torch.float64
    if kind == "evidence":
        assert encoding.score.unique().numel() == 9  # every source of every episode has its own
    else:
        assert not encoding.score.any()


@every_encoder
def test_invariant_to_the_order_of_shots(kind: str) -> None:
    features, labels, mask, class_mask = supports()
    encoder = small_encoder(kind)
    reference = encoder(features, labels, mask, class_mask)
    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        moved = encoder(features[:, :, order], labels[:, order], mask[:, order], class_mask)
        assert difference(moved, reference) <= TOLERANCE


@every_encoder
def test_invariant_to_relabelling_of_classes(kind: str) -> None:
    features, labels, mask, class_mask = supports()
    encoder = small_encoder(kind)
    reference = encoder(features, labels, mask, class_mask)
    for b, permutation in (
        (0, [2, 0, 1, 3]),
        (0, [3, 1, 0, 2]),
        (1, [1, 0, 2, 3]),
        (1, [3, 2, 1, 0]),
        (2, [3, 2, 0, 1]),
    ):
        names = torch.tensor(permutation)
        renamed, classes = labels.clone(), class_mask.clone()
        renamed[b] = names[labels[b]]
        classes[b, names] = class_mask[b]  # an absent class may stand anywhere, not only at the end
        assert difference(encoder(features, renamed, mask, classes), reference) <= TOLERANCE


@every_encoder
def test_labels_matter(kind: str) -> None:
    """The invariance above is no blindness: the same shots in other classes are another task."""
    features, labels, mask, class_mask = supports()
    encoder = small_encoder(kind)
    swapped = labels.clone()
    swapped[0, [0, 1]] = labels[0, [1, 0]]
    reference, other = encoder(features, labels, mask, class_mask), encoder(features, swapped, mask, class_mask)
    assert largest_difference(other.embedding[0], reference.embedding[0]) > 1e-4
    assert largest_difference(other.embedding[1:], reference.embedding[1:]) <= TOLERANCE


@every_encoder
def test_padding_never_matters(kind: str) -> None:
    features, labels, mask, class_mask = supports()
    encoder = small_encoder(kind)
    reference = encoder(features, labels, mask, class_mask)
    garbage, names = features.clone(), labels.clone()
    garbage[1, :, 5:], garbage[2, :, 4:] = torch.nan, torch.inf
    names[1, 5:], names[2, 4:] = 3, 2
    garbage = torch.cat([garbage, torch.full((3, 3, 2, FEATURES), 1e300, dtype=torch.float64)], dim=2)
    names = torch.cat([names, torch.ones(3, 2, dtype=torch.long)], dim=1)
    wider = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    more_ways = torch.cat([class_mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert difference(encoder(garbage, names, wider, more_ways), reference) <= TOLERANCE


@every_encoder
def test_company_in_the_batch_never_matters(kind: str) -> None:
    features, labels, mask, class_mask = supports()
    encoder = small_encoder(kind)
    reference = encoder(features, labels, mask, class_mask)
    for b, (shots, way) in enumerate(((7, 3), (5, 2), (4, 4))):  # every episode alone, without padding
        chosen = slice(b, b + 1)
        alone = encoder(
            features[chosen, :, :shots], labels[chosen, :shots], mask[chosen, :shots], class_mask[chosen, :way]
        )
        assert difference(alone, Encoding(reference.embedding[chosen], reference.score[chosen])) <= TOLERANCE


@every_encoder
def test_equivariant_in_the_sources_and_every_source_sees_the_others(kind: str) -> None:
    features, labels, mask, class_mask = supports(sources=4)
    encoder = small_encoder(kind)
    reference = encoder(features, labels, mask, class_mask)
    order = torch.tensor([2, 0, 3, 1])
    moved = encoder(features[:, order], labels, mask, class_mask)
    assert difference(moved, Encoding(reference.embedding[:, order], reference.score[:, order])) <= TOLERANCE
    changed = features.clone()
    changed[:, 3] = changed[:, 3].roll(1, dims=-2)
    other = encoder(changed, labels, mask, class_mask)
    assert largest_difference(other.embedding[:, 0], reference.embedding[:, 0]) > 1e-5
    assert largest_difference(other.score[:, :3], reference.score[:, :3]) <= TOLERANCE  # the head start does not


@every_encoder
def test_a_source_can_be_added_later(kind: str) -> None:
    """The parameters of an encoder that has only seen R sources load and run with R + 1, and with one."""
    features, labels, mask, class_mask = supports(sources=4)
    encoder = small_encoder(kind, seed=1)
    encoder(features[:, :3], labels, mask, class_mask).embedding.sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for n, p in encoder.named_parameters() if n != "trust"
    )
    fresh = small_encoder(kind, seed=2)
    fresh.load_state_dict(encoder.state_dict())
    for count in (4, 1):
        encoding = fresh(features[:, :count], labels, mask, class_mask)
        assert encoding.embedding.shape == (3, count, 16)
        assert encoding.score.shape == (3, count)
        assert difference(encoding, encoder(features[:, :count], labels, mask, class_mask)) == 0.0
    # Mean and maximum over the sources do not move when every source comes twice.
    twice = fresh(features.repeat(1, 2, 1, 1), labels, mask, class_mask)
    once = fresh(features, labels, mask, class_mask)
    doubled = Encoding(once.embedding.repeat(1, 2, 1), once.score.repeat(1, 2))
    assert difference(twice, doubled) <= TOLERANCE


@every_encoder
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["random", "equal", "zero", "one zero shot", "opposite"])
def test_finite_with_finite_gradients(kind: str, dtype: torch.dtype, case: str) -> None:
    features, labels, mask, class_mask = supports()
    if case in ("equal", "zero"):
        features = torch.full_like(features, float(case == "equal"))
    elif case == "one zero shot":
        features[:, :, 1] = 0.0
    elif case == "opposite":  # the prototype of class 0 of the last episode is zero
        features[1, :, 3] = -features[1, :, 0]
    features = features.to(dtype).requires_grad_()
    encoder = small_encoder(kind).to(torch.promote_types(dtype, torch.float32))
    encoding = encoder(features, labels, mask, class_mask)
    assert encoding.embedding.dtype == encoding.score.dtype == torch.promote_types(dtype, torch.float32)
    (encoding.embedding.square().sum() + encoding.score.sum()).backward()
    gradients: list[Tensor | None] = [features.grad, *(p.grad for n, p in encoder.named_parameters() if n != "trust")]
    for tensor in (encoding.embedding, encoding.score, *gradients):
        assert tensor is not None
        assert torch.isfinite(tensor).all()


@every_encoder
def test_one_class_and_one_shot(kind: str) -> None:
    """The smallest support there is: no pair of classes, no other shot."""
    features = torch.randn(1, 2, 1, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1, 1, dtype=torch.bool)
    encoding = small_encoder(kind)(features.requires_grad_(), torch.zeros(1, 1, dtype=torch.long), one, one)
    encoding.embedding.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(encoding.embedding).all()
    assert torch.isfinite(encoding.score).all()
    assert torch.isfinite(features.grad).all()


def test_unknown_names_and_impossible_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'deepsets'.*deep_sets.*evidence.*prototype_attention.*prototype_moments"):
        build_encoder("deepsets", 6, 16)
    with pytest.raises(ValueError, match="hidden is 18 with 4 heads"):
        PrototypeAttentionEncoder(6, 18)
