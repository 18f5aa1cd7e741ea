"""What descriptors add to an encoder: sources can be told apart by what they are, and exchanged."""

from __future__ import annotations

import pytest
import torch
from made_encoders import ENCODERS
from small_supports import largest_difference, small_encoder, supports
from torch.nn import functional as F

from pyro_smat.encoders import DescribedEncoder


def described(kind: str, sources: int = 3, seed: int = 0) -> DescribedEncoder:
    encoder = small_encoder(kind, seed)
    descriptors = torch.randn(sources, 5, generator=torch.Generator().manual_seed(seed))
    return DescribedEncoder(encoder, descriptors).double()


@pytest.mark.parametrize("kind", ENCODERS)
def test_equivariant_in_sources_with_their_descriptors(kind: str) -> None:
    features, *rest = supports()
    encoder = described(kind)
    reference = encoder(features, *rest)
    order = torch.tensor([2, 0, 1])
    moved = DescribedEncoder(encoder.support, encoder.descriptors[order])
    moved.describe = encoder.describe
    encoding = moved(features[:, order], *rest)
    assert largest_difference(encoding.embedding, reference.embedding[:, order]) < 1e-12
    assert largest_difference(encoding.score, reference.score[:, order]) == 0.0
    unmoved = encoder(features[:, order], *rest)  # descriptors that stay behind are noticed
    assert largest_difference(unmoved.embedding, reference.embedding[:, order]) > 1e-5


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_weights_of_one_library_load_for_another(kind: str) -> None:
    features, *rest = supports(sources=4)
    encoder = described(kind)
    more = described(kind, sources=4, seed=1)
    more.load_state_dict(encoder.state_dict())
    assert more(features, *rest).embedding.shape == (3, 4, 16)
    with pytest.raises(ValueError, match="features of 4 sources; expected 3"):
        encoder(features, *rest)


def test_learns_a_preference_that_no_support_shows() -> None:
    """All sources see the same features; only the descriptor says which one is good, of sources never seen too."""
    torch.manual_seed(0)
    encoder, head = small_encoder("evidence"), torch.nn.Linear(16, 1).double()
    features, *rest = supports(sources=1)
    net = DescribedEncoder(encoder, torch.zeros(4, 5)).double()
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-2)

    def logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        net.descriptors = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double()
        return head(net(features.expand(-1, 4, -1, -1), *rest).embedding).squeeze(-1), net.descriptors[:, 0].argmax()

    for step in range(200):
        scores, good = logits(step)
        optimizer.zero_grad()
        F.cross_entropy(scores, good.expand(3)).backward()
        optimizer.step()
    with torch.no_grad():
        right = [bool((scores.argmax(-1) == good).all()) for scores, good in map(logits, range(1000, 1100))]
    assert sum(right) > 80


def test_descriptors_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"descriptors have shape \(3,\)"):
        DescribedEncoder(small_encoder("evidence"), torch.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        DescribedEncoder(small_encoder("evidence"), torch.full((3, 2), torch.nan))
