"""Advantages of sources: one that has memorised the training classes is named, and nobody else."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.evaluation.source_advantages import SourceAdvantage, source_advantages, warn_of_seen
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace

CLASSES, SIZE, SEEN = 12, 8, 6


def world(cheat: int) -> tuple[SourceFeatures, SourceFeatures, tuple[str, ...]]:
    """Classes are faint patterns in noise; source ``cheat`` is a linear map that knows the first six of them."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, SIZE * SIZE, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(30)
    pixels = 128 + 12 * patterns[labels] + 40 * torch.randn(len(labels), SIZE * SIZE, generator=generator)
    images = pixels.clamp(0, 255).byte().view(-1, 1, SIZE, SIZE)
    names = tuple(f"class {k}" for k in range(CLASSES))

    def pool(which: Tensor) -> ImagePool:
        rows = which.nonzero().flatten()
        zeros = torch.zeros(len(rows), dtype=torch.long)
        return ImagePool(images[rows], labels[rows].unsqueeze(1), ("class",), (names,), zeros)

    module = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 16))
    space = ParameterSpace.from_module(module)
    rows = []
    for r in range(3):
        weight = torch.randn(16, SIZE * SIZE, generator=generator) / SIZE
        if r == cheat:
            weight[:SEEN] = 4 * patterns[:SEEN] / SIZE
        bias = -weight.sum(1) * 128 / 255
        rows.append(space.flatten({"1.weight": weight, "1.bias": bias}))
    network, basis = TaskNetwork(module, space), torch.stack(rows)
    features = [SourceFeatures(network, basis, pool(part)) for part in (labels < SEEN, labels >= SEEN)]
    return features[0], features[1], ("start", "one", "two")


def advantages(cheat: int, same: bool = False) -> list[SourceAdvantage]:
    training, validation, names = world(cheat)
    parts = (training, training if same else validation)
    first, second = ((part, EpisodeSampler(part.pool, 4, 5, 10, seed=k)) for k, part in enumerate(parts) if part.pool)
    return source_advantages(names, first, second)


@pytest.mark.parametrize("cheat", [0, 1, 2])
def test_the_one_that_has_seen_the_classes_is_named(cheat: int) -> None:
    found = advantages(cheat)
    assert found[cheat].suspicious
    assert found[cheat].training - found[cheat].validation > 0.1
    others = [one for k, one in enumerate(found) if k != cheat and k != 0]
    assert not any(one.suspicious for one in others)
    figures = f"source '{found[cheat].source}' is {100 * found[cheat].training:.1f} points better"
    with pytest.warns(UserWarning, match=figures) as told:
        warn_of_seen(found)
    assert f"[data.seen] {found[cheat].source} = [...]" in str(told[0].message)


def test_the_same_classes_and_honest_sources_warn_of_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_seen(advantages(1, same=True))
        warn_of_seen(advantages(-1))
