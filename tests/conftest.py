"""Tiny fixtures: pools whose pixels tell which image was drawn, and routers of a few dozen weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pyro_smat.composition import TaskNetwork
from pyro_smat.data.pool import ImagePool
from pyro_smat.episodes import Episode, EpisodeBatch
from pyro_smat.experts import ExpertBank
from pyro_smat.features import SourceFeatures
from pyro_smat.guides import CatalogGuide, LogisticNormalGuide, PointGuide, RoutingGuide
from pyro_smat.local_module import LocalModule
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import CostAwareCatalogPrior, LogisticNormalPrior
from pyro_smat.parameters import ParameterSpace
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary


def encode_row(rows: Tensor) -> Tensor:
    """``(n, 1, 2, 2)`` uint8 images that hold their row number plus one in base 256, so that no image is all zeros."""
    digits = torch.stack([((rows + 1) // 256**p) % 256 for p in range(4)], 1)
    return digits.to(torch.uint8).reshape(-1, 1, 2, 2)


def decode_row(images: Tensor) -> Tensor:
    """Row numbers ``(...)`` of float images ``(..., 1, 2, 2)`` in [0, 1]."""
    digits = (images * 255).round().long().flatten(-3)
    return (digits * 256 ** torch.arange(4)).sum(-1) - 1


@pytest.fixture(scope="session")
def decode() -> Callable[[Tensor], Tensor]:
    """Turns drawn images back into rows of the pool."""
    return decode_row


@pytest.fixture(scope="session")
def crossed_pool() -> ImagePool:
    """1440 images: 8 shapes x 6 colours x 6 sizes, five of each in domains ``day`` (3) and ``night`` (2), shuffled."""
    cells = torch.tensor(list(itertools.product(range(8), range(6), range(6), [0, 0, 0, 1, 1])))
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))]
    return ImagePool(
        images=encode_row(torch.arange(len(cells))),
        labels=cells[:, :3].contiguous(),
        attributes=("shape", "colour", "size"),
        class_names=(
            tuple(f"shape{i}" for i in range(8)),
            tuple(f"colour{i}" for i in range(6)),
            tuple(f"size{i}" for i in range(6)),
        ),
        domain=cells[:, 3].contiguous(),
        domain_names=("day", "night"),
    )


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., ImagePool]:
    """``make_pool({"a": 20, "b": 7})``: one attribute ``class`` with these counts; a dict of dicts gives domains."""

    def make(counts: dict) -> ImagePool:
        nested = counts if all(isinstance(c, dict) for c in counts.values()) else {"all": counts}
        names = sorted({name for inner in nested.values() for name in inner})
        cells = [
            (names.index(name), d)
            for d, inner in enumerate(nested.values())
            for name, n in inner.items()
            for _ in range(n)
        ]
        table = torch.tensor(cells)
        return ImagePool(
            images=encode_row(torch.arange(len(table))),
            labels=table[:, :1].contiguous(),
            attributes=("class",),
            class_names=(tuple(names),),
            domain=table[:, 1].contiguous(),
            domain_names=tuple(nested),
        )

    return make


@dataclass(frozen=True)
class Router:
    """A tiny router and a batch of episodes for it: a linear network on 2 x 2 images, d = 25."""

    model: RoutedModel
    guide: RoutingGuide
    batch: EpisodeBatch
    library: SourceLibrary
    network: TaskNetwork
    features: SourceFeatures

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.parameters(), *self.guide.parameters()]


def tiny_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.Tanh())


def random_episode(way: int, shot: int, query: int, seed: int, dtype: torch.dtype = torch.float64) -> Episode:
    """Images of class k are noise around a mean of their own, so that there is something to route on."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(way, 1, 2, 2, generator=generator, dtype=torch.float64)

    def images(count: int) -> Tensor:
        noise = torch.randn(way * count, 1, 2, 2, generator=generator, dtype=torch.float64)
        return (centres.repeat_interleave(count, 0) + 0.7 * noise).to(dtype)

    labels = torch.arange(way)
    return Episode(images(shot), labels.repeat_interleave(shot), images(query), labels.repeat_interleave(query), way)


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """``make_episode(way, shot, query, seed)``, float64."""
    return random_episode


@pytest.fixture
def make_router() -> Callable[..., Router]:
    """``make_router("catalog", sources=3, experts=2)``: float64, gates sampled, episodes of different sizes."""

    def make(
        family: str = "logistic_normal",
        sources: int = 3,
        experts: int = 2,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        episodes: int = 4,
        beta: float = 0.5,
    ) -> Router:
        generator = torch.Generator().manual_seed(seed)
        space = ParameterSpace.from_module(tiny_network())
        basis = 0.7 * torch.randn(sources, space.dim, generator=generator, dtype=dtype)
        library = SourceLibrary(tuple(f"source{r}" for r in range(sources)), basis, space)
        network = TaskNetwork(tiny_network(), space)
        bank = ExpertBank(space, experts, 0.6, delta_scale=0.5, generator=generator) if experts else None
        prior: LocalModule
        guide: RoutingGuide
        if family == "catalog":
            catalog = Catalog.k_hot(library.names, experts, max_sources=2)
            prior = CostAwareCatalogPrior(catalog, torch.arange(1.0, 1.0 + sources + experts), beta)
            guide = CatalogGuide(catalog, sources, hidden=8)
        else:
            prior = LogisticNormalPrior(sources, experts)
            guide = (LogisticNormalGuide if family == "logistic_normal" else PointGuide)(sources, experts, hidden=8)
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        model = RoutedModel(network, library, prior, bank, compute_dtype=dtype).to(dtype)
        shapes = [(5, 2, 3), (3, 1, 4), (4, 3, 2), (2, 2, 3)]
        batch = EpisodeBatch.collate([random_episode(*shapes[i % 4], seed + i, dtype) for i in range(episodes)])
        features = SourceFeatures(network, basis)
        return Router(model, guide.to(dtype), features.attach(batch), library, network, features)

    return make
