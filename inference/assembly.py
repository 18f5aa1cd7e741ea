"""From a config to the objects of a run: pools, samplers, the router, the objective.

The one place that knows which class a name in the config means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.composition import TaskNetwork
from pyro_smat.config import RunConfig
from pyro_smat.corruption import SupportCorruption
from pyro_smat.data.folders import read_folder
from pyro_smat.data.glyphs import glyph_pool
from pyro_smat.data.pool import ImagePool
from pyro_smat.data.table import read_csv
from pyro_smat.experts import ExpertBank
from pyro_smat.features import SourceFeatures
from pyro_smat.guides import CatalogGuide, LogisticNormalGuide, PointGuide, RoutingGuide
from pyro_smat.inference.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.sources import SourceReference
from pyro_smat.inference.trainer import TrainingSettings
from pyro_smat.local_module import LocalModule
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import CatalogPrior, CostAwareCatalogPrior, LogisticNormalPrior
from pyro_smat.networks import build_network
from pyro_smat.pretraining import GLYPH_NETWORK, shipped_glyph_sources
from pyro_smat.routing import Catalog
from pyro_smat.sampler import EpisodeSampler
from pyro_smat.sources import SourceLibrary


@dataclass(frozen=True)
class Router:
    """A model and a guide over one source library.

    Attributes:
        config: what it was built from.
        library: the frozen sources.
        model, guide: the pair, on ``device``.
        device: where they are.
    """

    config: RunConfig
    library: SourceLibrary
    model: RoutedModel
    guide: RoutingGuide
    device: torch.device

    def features(self, pool: ImagePool | None = None, progress: bool = False) -> SourceFeatures:
        """Frozen source features of a pool (or of loose images)."""
        return SourceFeatures(self.model.network, self.model.sources, pool, progress=progress)


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" to a device.

    Raises:
        ValueError: for another name, or "cuda" where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}; expected 'auto', 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda' but PyTorch finds no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def open_library(config: RunConfig) -> tuple[nn.Module, SourceLibrary]:
    """The network template and the sources that the config names (the shipped glyph sources where it names none)."""
    if not config.sources.files:
        if config.data.kind != "glyphs" or config.sources.options or config.sources.network != "conv4":
            raise ValueError(
                "[sources] names no files; only the built-in glyphs have sources of their own: "
                'add files = {name = "checkpoint.safetensors", ...}, the fallback first'
            )
        name, options = GLYPH_NETWORK
        network = build_network(name, **options)
        return network, SourceLibrary.from_files(network, shipped_glyph_sources())
    network = build_network(config.sources.network, **config.sources.options)
    return network, SourceLibrary.from_files(network, config.sources.files)


def build_router(
    config: RunConfig, device: torch.device, opened: tuple[nn.Module, SourceLibrary] | None = None
) -> Router:
    """Model and guide as the config says, with initial values from its seed.

    Args:
        config: the config.
        device: where to put them.
        opened: network and sources, when they are open already.
    """
    network, library = opened or open_library(config)
    sources, experts = len(library), config.experts.count
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prior, guide = _family(config, library, sources, experts)
    bank = (
        ExpertBank(library.space, experts, config.experts.sparsity, config.experts.granularity, generator=generator)
        if experts
        else None
    )
    precision = config.training.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    model = RoutedModel(
        TaskNetwork(network, library.space),
        library,
        prior,
        bank,
        metric=config.head.metric,
        scale=config.head.scale,
        compute_dtype=getattr(torch, precision),
    )
    return Router(config, library, model.to(device), guide.to(device), device)


def build_pool(config: RunConfig, split: str | None, path: Path | None = None) -> ImagePool:
    """The images of a split, or of any other folder or CSV file at ``path``."""
    data = config.data
    if path is None and data.kind == "glyphs":
        assert split is not None
        return glyph_pool(split, size=data.size)
    where = path or data.path
    assert where is not None
    if where.suffix == ".csv":
        return read_csv(where, size=data.size, channels=data.channels, split=split if path is None else None)
    if path is None and split is not None and (where / split).is_dir():
        return read_folder(where / split, size=data.size, channels=data.channels)
    return read_folder(where, size=data.size, channels=data.channels, split=split if path is None else None)


def build_sampler(
    config: RunConfig, pool: ImagePool, seed: int, corruption: SupportCorruption | None = None
) -> EpisodeSampler:
    """Episodes as the config shapes them; ``corruption`` replaces that of the config."""
    episodes = config.episodes
    known = set(pool.attributes)
    return EpisodeSampler(
        pool,
        episodes.way,
        episodes.shot,
        episodes.query,
        attributes=[a for a in episodes.attributes if a in known] or None if episodes.attributes else None,
        domains=episodes.domains if episodes.domains and set(episodes.domains) <= set(pool.domain_names) else None,
        imbalance=episodes.imbalance,
        corruption=episodes.corruption.build() if corruption is None else corruption,
        seed=seed,
        skip_small_classes=episodes.skip_small_classes,
    )


def build_elbo(config: RunConfig, features: SourceFeatures) -> CVaR_ELBO:
    """The objective; ``features`` serve the reference of regret."""
    objective = config.objective
    reference: Callable[..., Tensor] | None = None
    if objective.reference != "none":
        reference = SourceReference(
            features, objective.reference, episode_loss=objective.episode_loss, metric=config.head.metric
        )
    return CVaR_ELBO(
        rho=objective.rho,
        kl_weight=objective.kl_weight,
        tail_weight=objective.tail_weight,
        episode_loss=objective.episode_loss,
        reference=reference,
        num_particles=objective.num_particles,
        vectorize_particles=objective.num_particles > 1,
        max_plate_nesting=2 if objective.num_particles == 1 else 3,  # episodes, queries, and particles
    )


def training_settings(config: RunConfig) -> TrainingSettings:
    """The trainer's part of the config."""
    return TrainingSettings(**{k: getattr(config.training, k) for k in TrainingSettings.__dataclass_fields__})


def sources_of_routes(pool: ImagePool, library: SourceLibrary) -> tuple[int, ...]:
    """For every route of a pool (attribute or domain), the source of the same name, -1 where there is none; () if no
    source has the name of a route."""
    routes = pool.attributes if len(pool.attributes) > 1 else pool.domain_names
    found = tuple(library.names.index(name) if name in library.names else -1 for name in routes)
    return found if any(index >= 0 for index in found) else ()


def _family(config: RunConfig, library: SourceLibrary, sources: int, experts: int) -> tuple[LocalModule, RoutingGuide]:
    """The prior and the guide of the family that the config names."""
    size, prior, guide = sources + experts, config.prior, config.guide
    costs = torch.ones(size) if prior.costs is None else torch.tensor(prior.costs)
    if costs.shape != (size,):
        raise ValueError(
            f"prior.costs has {len(costs)} values; expected {size}: {sources} sources and {experts} experts"
        )
    if guide.family == "catalog":
        catalog = Catalog.k_hot(library.names, experts, guide.max_sources)
        of_catalog = (
            CostAwareCatalogPrior(catalog, costs, prior.beta) if prior.kind == "cost_aware" else CatalogPrior(catalog)
        )
        return of_catalog, CatalogGuide(catalog, sources, guide.hidden)
    beta = prior.beta if prior.kind == "cost_aware" else 0.0
    of_simplex = LogisticNormalPrior.cost_aware(sources, experts, costs, beta, prior.scale)
    if guide.family == "point":
        return of_simplex, PointGuide(sources, experts, guide.hidden)
    return of_simplex, LogisticNormalGuide(sources, experts, guide.hidden)
