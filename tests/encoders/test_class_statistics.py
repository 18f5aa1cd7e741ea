"""The learned encoders by another route: statistics shot by shot, pooling in loops, attention by torch's own layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from small_supports import FEATURES, largest_difference, small_encoder, supports
from torch import Tensor, nn

from pyro_smat.encoders import DeepSetsEncoder, PrototypeAttentionEncoder, PrototypeMomentsEncoder
from pyro_smat.encoders.classes import class_statistics
from pyro_smat.encoders.moments import similarity_moments


def each_class(seed: int = 0) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Episode, source and the shots ``(n, f)`` of every class, as directions of mean square 1."""
    features, labels, mask, class_mask = supports(seed)
    for b, r in itertools.product(range(3), range(3)):
        shots = [features[b, r, mask[b] & (labels[b] == k)] for k in range(int(class_mask[b].sum()))]
        yield b, r, [x / x.norm(dim=-1, keepdim=True) * math.sqrt(FEATURES) for x in shots]


def test_prototype_spread_and_size() -> None:
    features, labels, mask, _ = supports()
    statistics = class_statistics(features, labels, mask, 4)
    for b, r, classes in each_class():
        for k, shots in enumerate(classes):
            assert largest_difference(statistics.prototypes[b, r, k], shots.mean(0)) <= 1e-12
            variance = shots.var(dim=0, correction=1).mean() if len(shots) > 1 else torch.zeros(())
            assert statistics.spread[b, r, k].item() == pytest.approx(variance.item(), abs=1e-12)
            assert statistics.size[b, r, k].item() == pytest.approx(math.log(1 + len(shots)) / 3)
    assert not statistics.prototypes[1, :, 2:].any()  # absent classes
    assert not statistics.spread[1, :, 2:].any()


def test_a_tight_class_does_not_drown_in_rounding() -> None:
    """A spread of 1e-8 in float32, where the mean square minus the squared mean has an error of 1e-7."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 1, 1, 64, generator=generator) + 1e-4 * torch.randn(1, 1, 9, 64, generator=generator)
    everything = torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool), 1
    single, double = (class_statistics(x, *everything).spread.item() for x in (features, features.double()))
    assert 1e-9 < double < 1e-7
    assert single == pytest.approx(double, rel=1e-2)


def test_similarity_moments_pair_by_pair() -> None:
    features, labels, mask, class_mask = supports()
    moments = similarity_moments(class_statistics(features, labels, mask, 4).prototypes, class_mask)
    for b, r, classes in each_class():
        centres = [shots.mean(0) for shots in classes]
        cosines = [float(p @ q / (p.norm() * q.norm())) for p, q in itertools.combinations(centres, 2)]
        mean = sum(cosines) / len(cosines)
        variance = sum((c - mean) ** 2 for c in cosines) / len(cosines)
        assert moments[b, r].tolist() == pytest.approx([mean, variance, max(cosines)], abs=1e-12)
    lonely = similarity_moments(torch.randn(1, 1, 3, 5), torch.tensor([[False, True, False]]))
    assert not lonely.any()


def test_deep_sets_shot_by_shot() -> None:
    encoder = small_encoder("deep_sets")
    assert isinstance(encoder, DeepSetsEncoder)
    features, labels, mask, class_mask = supports()
    own = encoder.encode_alone(features, labels, mask, class_mask).embedding
    for b, r, classes in each_class():
        vectors = []
        for shots in classes:
            pooled = torch.stack([encoder.phi(x) for x in shots]).mean(0)
            vectors.append(encoder.rho(torch.cat([pooled, pooled.new_tensor([math.log(1 + len(shots)) / 3])])))
        both = torch.cat([torch.stack(vectors).mean(0), torch.stack(vectors).amax(0)])
        assert largest_difference(own[b, r], encoder.pool(both)) <= 1e-12


def test_moments_class_by_class() -> None:
    encoder = small_encoder("prototype_moments")
    assert isinstance(encoder, PrototypeMomentsEncoder)
    features, labels, mask, class_mask = supports()
    own = encoder.encode_alone(features, labels, mask, class_mask).embedding
    statistics = class_statistics(features, labels, mask, 4)
    cosines = similarity_moments(statistics.prototypes, class_mask)
    for b, r, classes in each_class():
        places = torch.stack([encoder.project(shots.mean(0)) for shots in classes])
        of_classes = torch.stack([statistics.spread[b, r], statistics.size[b, r]])[:, : len(classes)].mean(1)
        moments = torch.cat([places.mean(0), places.var(dim=0, correction=0), of_classes, cosines[b, r]])
        assert largest_difference(own[b, r], encoder.embed(moments)) <= 1e-12


def test_attention_against_the_layer_of_torch() -> None:
    encoder = small_encoder("prototype_attention")
    assert isinstance(encoder, PrototypeAttentionEncoder)
    peer = nn.MultiheadAttention(16, num_heads=4, batch_first=True).double()
    with torch.no_grad():
        peer.in_proj_weight.copy_(encoder.query_key_value.weight)
        peer.in_proj_bias.copy_(encoder.query_key_value.bias)
        peer.out_proj.load_state_dict(encoder.output.state_dict())
    tokens = torch.randn(3, 2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, _, _, class_mask = supports()
    ours = encoder.attend(tokens, class_mask)
    for r in range(2):
        theirs, _ = peer(tokens[:, r], tokens[:, r], tokens[:, r], key_padding_mask=~class_mask)
        shown = class_mask.unsqueeze(-1)
        assert largest_difference(ours[:, r] * shown, theirs * shown) <= 1e-12


@pytest.mark.parametrize("kind", ["deep_sets", "prototype_moments", "prototype_attention"])
def test_only_the_direction_of_a_feature_matters(kind: str) -> None:
    features, labels, mask, class_mask = supports()
    lengths = torch.rand(3, 3, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    encoder = small_encoder(kind)  # type: ignore[arg-type]
    reference = encoder(features, labels, mask, class_mask).embedding
    assert largest_difference(encoder(features * lengths, labels, mask, class_mask).embedding, reference) <= 1e-9
