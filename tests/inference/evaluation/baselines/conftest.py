"""A tiny library to build baselines from: linear networks on 2 x 2 images, d = 25, float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import Episode, EpisodeBatch
from pyro_smat.inference.evaluation.baselines import ComposedLibrary
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary

SHAPES = [(5, 3, 3), (3, 1, 4), (4, 3, 2), (2, 2, 3)]  # way, shot, query: padded and one-shot episodes among them


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh())


def library_of(basis: Tensor) -> ComposedLibrary:
    space = ParameterSpace.from_module(network())
    library = SourceLibrary(tuple(f"source{r}" for r in range(len(basis))), basis, space)
    return ComposedLibrary(TaskNetwork(network(), space), library)


@pytest.fixture
def composed() -> ComposedLibrary:
    """Four random sources."""
    return library_of(0.7 * torch.randn(4, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.fixture
def make_library() -> Callable[[Tensor], ComposedLibrary]:
    return library_of


@pytest.fixture
def make_batch(make_episode: Callable[..., Episode]) -> Callable[..., EpisodeBatch]:
    """``make_batch(composed, seed)``: four episodes of different shapes, with support features."""

    def make(composed: ComposedLibrary, seed: int = 0) -> EpisodeBatch:
        episodes = [make_episode(*shape, seed + i) for i, shape in enumerate(SHAPES)]
        return SourceFeatures(composed.network, composed.sources).attach(EpisodeBatch.collate(episodes))

    return make


def features_by_hand(theta: Tensor, images: Tensor) -> Tensor:
    return torch.tanh(images.flatten(1) @ theta[:20].view(5, 4).T + theta[20:])


@pytest.fixture
def query_loss_by_hand() -> Callable[[Tensor, EpisodeBatch, int], Tensor]:
    """``(theta (25,), batch, i)``: mean query loss of episode i, with nothing but linear algebra."""

    def loss(theta: Tensor, batch: EpisodeBatch, i: int) -> Tensor:
        shots, queries = batch.support.mask[i], batch.query.mask[i]
        support, labels = features_by_hand(theta, batch.support.images[i][shots]), batch.support.labels[i][shots]
        centres = torch.stack([support[labels == k].mean(0) for k in range(int(batch.way[i]))])
        asked = features_by_hand(theta, batch.query.images[i][queries])
        return F.cross_entropy(
            10 * F.cosine_similarity(asked[:, None], centres, dim=-1), batch.query.labels[i][queries]
        )

    return loss


@pytest.fixture
def support_loss_by_hand() -> Callable[[Tensor, EpisodeBatch, int], Tensor]:
    """Likewise the leave-one-out loss of the support of an episode with two shots a class or more."""

    def loss(theta: Tensor, batch: EpisodeBatch, i: int) -> Tensor:
        shots = batch.support.mask[i]
        features, labels = features_by_hand(theta, batch.support.images[i][shots]), batch.support.labels[i][shots]
        losses = []
        for j in range(len(labels)):
            others = torch.arange(len(labels)) != j
            centres = torch.stack([features[others & (labels == k)].mean(0) for k in range(int(batch.way[i]))])
            similar = F.cosine_similarity(features[j : j + 1], centres, dim=-1)
            losses.append(F.cross_entropy(10 * similar, labels[j]))
        return torch.stack(losses).mean()

    return loss
