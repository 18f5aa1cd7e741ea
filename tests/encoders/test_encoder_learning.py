"""Every encoder learns which source separates the classes, and still knows it when a source is added."""

from __future__ import annotations

import pytest
import torch
from made_encoders import ENCODERS, build_encoder
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, WAY, SHOTS = 8, 3, 4
Tasks = tuple[Tensor, Tensor, Tensor, Tensor]


def tasks(count: int, sources: int, seed: int) -> tuple[Tasks, Tensor]:
    """Supports where one random source groups the shots by class, and the index of this source ``(count,)``.

    The others group the same number of shots just as tightly, but across the classes (even sources) or all in one
    place (odd ones): neither the features without their labels nor tight classes alone give the good one away.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(WAY).repeat_interleave(SHOTS)  # (S,)
    across = torch.arange(WAY * SHOTS) % WAY
    good = torch.randint(sources, (count,), generator=generator)
    centres = torch.randn(count, sources, WAY, FEATURES, generator=generator)
    group = torch.stack([across if r % 2 == 0 else torch.zeros_like(across) for r in range(sources)])
    group = group.repeat(count, 1, 1)
    group[torch.arange(count), good] = labels
    points = torch.take_along_dim(centres, group.unsqueeze(-1), dim=2)
    features = points + 0.4 * torch.randn(points.shape, generator=generator)
    everything = torch.ones(count, WAY * SHOTS, dtype=torch.bool), torch.ones(count, WAY, dtype=torch.bool)
    return (features, labels.expand(count, -1), *everything), good


@pytest.mark.parametrize("kind", ENCODERS)
def test_picks_the_source_that_separates_the_classes(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(kind, FEATURES, hidden=32)
    head = nn.Linear(32, 1)

    def logits(batch: Tasks) -> Tensor:
        encoding = encoder(*batch)
        return head(encoding.embedding).squeeze(-1) + encoding.score

    def accuracy(sources: int) -> float:
        batch, good = tasks(500, sources, seed=10_000 + sources)
        with torch.no_grad():
            return float((logits(batch).argmax(-1) == good).float().mean())

    if kind == "evidence":
        assert accuracy(4) > 0.8  # before any training: the head start
    else:
        assert accuracy(4) < 0.5
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for step in range(150):
        batch, good = tasks(32, 4, seed=step)
        loss = F.cross_entropy(logits(batch), good)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy(4) > 0.8  # chance: 0.25
    assert accuracy(6) > 0.8  # two sources that the encoder has never seen
