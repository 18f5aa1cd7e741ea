"""Tiny fixtures: pools whose pixels tell which image was drawn, and routers of a few dozen weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from input_noise import InputNoise
from made_encoders import build_encoder
from torch import Tensor

from pyro_smat.episodes import Episode, EpisodeBatch, Labelled
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.guides import (
    CatalogGuide,
    ConcreteGuide,
    DirichletGuide,
    HierarchicalGuide,
    LogisticNormalGuide,
    PointGuide,
    RoutingGuide,
)
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import (
    ConcretePrior,
    CostAwareCatalogPrior,
    DirichletPrior,
    HierarchicalPrior,
    LogisticNormalPrior,
    RoutingPrior,
)
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--input-noise", type=float, default=0.0, help="relative noise on what tests draw, such as 1e-12")


def pytest_configure(config: pytest.Config) -> None:
    if noise := config.getoption("--input-noise", 0.0):
        plugin = InputNoise(noise)
        config.pluginmanager.register(plugin)
        config.add_cleanup(plugin.undo)


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
    return Episode(
        Labelled(images(shot), labels.repeat_interleave(shot)), Labelled(images(query), labels.repeat_interleave(query))
    )


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    """``make_episode(way, shot, query, seed)``, float64."""
    return random_episode


BLOCKS = {1: None, 2: {"weight": ".*weight", "bias": ".*bias"}}


def default_catalog(names: tuple[str, ...], experts: int, blocks: int) -> Catalog:
    """Pairs of sources for whole networks, single sources for blocks; each with every expert."""
    if blocks == 1:
        return Catalog.k_hot(names, experts, max_sources=2)
    return Catalog.blockwise([Catalog.k_hot(names, experts)] * blocks)


def default_prior(
    family: str, sources: int, experts: int, blocks: int, catalog: Catalog | None, beta: float
) -> RoutingPrior:
    """A prior with an exact KL for each family."""
    if catalog is not None and family == "hierarchical":
        return HierarchicalPrior(catalog, catalog.families())
    if catalog is not None:
        return CostAwareCatalogPrior(catalog, torch.arange(1.0, 1.0 + sources + experts), beta=beta)
    if family == "dirichlet":
        return DirichletPrior(sources, experts, num_blocks=blocks)
    if family == "concrete":
        return ConcretePrior(sources, experts, num_blocks=blocks)
    return LogisticNormalPrior(sources, experts, num_blocks=blocks)


@pytest.fixture
def make_router() -> Callable[..., Router]:
    """``make_router("catalog", sources=3, experts=2)``: float64, gates sampled, episodes of different sizes.

    ``blocks=2`` mixes weight and bias apart; ``catalog`` and ``prior`` replace the defaults; ``guide_options`` and
    ``model_options`` go to the constructors.
    """

    def make(
        family: str = "logistic_normal",
        sources: int = 3,
        experts: int = 2,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        episodes: int = 4,
        beta: float = 0.5,
        blocks: int = 1,
        encoder: str = "evidence",
        catalog: Catalog | None = None,
        prior: RoutingPrior | None = None,
        guide_options: Mapping[str, Any] | None = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> Router:
        generator = torch.Generator().manual_seed(seed)
        space = ParameterSpace.from_module(tiny_network(), BLOCKS[blocks])
        basis = 0.7 * torch.randn(sources, space.dim, generator=generator, dtype=dtype)
        library = SourceLibrary(tuple(f"source{r}" for r in range(sources)), basis, space)
        network = TaskNetwork(tiny_network(), space)
        bank = ExpertBank(space, experts, sparsity=0.6, delta_scale=0.5, generator=generator) if experts else None
        with torch.random.fork_rng(devices=[]):  # the same router for the same arguments
            torch.manual_seed(seed)
            options = {"encoder": build_encoder(encoder, 5, 8), **(guide_options or {})}
            guide: RoutingGuide
            if family in ("catalog", "hierarchical"):
                catalog = default_catalog(library.names, experts, blocks) if catalog is None else catalog
                guide = (CatalogGuide if family == "catalog" else HierarchicalGuide)(catalog, sources, **options)
            else:
                simplex = {
                    "logistic_normal": LogisticNormalGuide,
                    "concrete": ConcreteGuide,
                    "dirichlet": DirichletGuide,
                    "point": PointGuide,
                }
                guide = simplex[family](sources, experts, num_blocks=blocks, **options)
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        if prior is None:
            prior = default_prior(family, sources, experts, blocks, catalog, beta)
        model = RoutedModel(
            network, library, prior=prior, experts=bank, compute_dtype=dtype, **(model_options or {})
        ).to(dtype)
        shapes = [(5, 2, 3), (3, 1, 4), (4, 3, 2), (2, 2, 3)]
        batch = EpisodeBatch.collate([random_episode(*shapes[i % 4], seed + i, dtype) for i in range(episodes)])
        features = SourceFeatures(network, basis)
        return Router(model, guide.to(dtype), features.attach(batch), library, network, features)

    return make
