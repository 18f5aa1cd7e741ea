"""From a config to the objects of a run: pools, samplers, the router, the objective.

The one place that knows which class a name in the config means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.inference.runs.config import RunConfig
from pyro_smat.episodes.corruption import SupportCorruption
from pyro_smat.episodes.readers.folders import read_folder
from pyro_smat.episodes.readers.glyphs import glyph_pool
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.episodes.readers.table import read_csv
from pyro_smat.networks.descriptors import probe_images, source_descriptors
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.runs.custom import MODEL_NEEDS, check_attributes, construct, load_class
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.particle import EpisodePenalty
from pyro_smat.inference.runs.families import build_guide, build_prior, default_catalog
from pyro_smat.inference.objective.reference import SourceReference
from pyro_smat.inference.training.trainer import TrainingSettings
from pyro_smat.models import RoutedModel
from pyro_smat.networks import build_network
from pyro_smat.sources.pretraining import GLYPH_NETWORK, shipped_glyph_sources
from pyro_smat.routing import Catalog
from pyro_smat.episodes.sampler import EpisodeSampler
from pyro_smat.sources import SourceLibrary


@dataclass(frozen=True)
class Router:
    """A model and a guide over one source library.

    Attributes:
        config: what it was built from.
        network: the template of the networks.
        library: the frozen sources.
        model, guide: the pair, on ``device``.
        device: where they are.
        catalog: of a guide over a catalog.
        descriptors: ``(R, D)`` of the sources, where the guide reads them.
    """

    config: RunConfig
    network: nn.Module
    library: SourceLibrary
    model: RoutedModel
    guide: RoutingGuide
    device: torch.device
    catalog: Catalog | None = None
    descriptors: Tensor | None = None

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


def source_files(config: RunConfig) -> tuple[nn.Module, Mapping[str, Path]]:
    """The network template and the checkpoints that the config names (the shipped glyph sources where it names none).

    Raises:
        ValueError: for a config that names no files and is not about the built-in glyphs.
    """
    if config.sources.files:
        return build_network(config.sources.network, **config.sources.options), config.sources.files
    if config.data.kind != "glyphs" or config.sources.options or config.sources.network != "conv4":
        raise ValueError(
            "[sources] names no files; only the built-in glyphs have sources of their own: "
            'add files = {name = "checkpoint.safetensors", ...}, the fallback first'
        )
    name, options = GLYPH_NETWORK
    return build_network(name, **options), shipped_glyph_sources()


def open_library(config: RunConfig) -> tuple[nn.Module, SourceLibrary]:
    """The network template and the library of the config's sources."""
    network, files = source_files(config)
    blocks, head = config.sources.blocks or None, config.sources.head
    return network, SourceLibrary.from_files(network, files, blocks, head=head)


def build_router(
    config: RunConfig,
    device: torch.device,
    opened: tuple[nn.Module, SourceLibrary] | None = None,
    *,
    catalog: Catalog | None = None,
    descriptors: Tensor | None = None,
    model_class: type | None = None,
    guide_class: type | None = None,
) -> Router:
    """Model and guide as the config says, with initial values from its seed.

    Args:
        config: the config.
        device: where to put them.
        opened: network and sources, when they are open already.
        catalog: of a guide over a catalog; default: all mixtures of up to ``guide.catalog.max_sources`` sources.
        descriptors: of the sources, when they are known already.
        model_class, guide_class: instead of those that the config names.
    """
    network, library = opened or open_library(config)
    sources, experts, blocks = len(library), config.experts.count, len(library.space.block_names)
    catalog = catalog or default_catalog(config, library.names, blocks)
    task_network = TaskNetwork(network, library.space)
    if not config.guide.descriptors:
        descriptors = None
    elif descriptors is None:
        probes = probe_images(config.data.channels, config.data.size)
        descriptors = source_descriptors(task_network, library.basis.to(device), probes).cpu()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        prior = build_prior(config.prior, config.guide.family, sources, experts, blocks, catalog)
        guide = build_guide(
            config,
            sources,
            blocks,
            catalog,
            prior,
            _feature_width(config, task_network, library),
            guide_class,
            descriptors,
        )
    parts = config.experts
    bank = (
        ExpertBank(
            library.space,
            experts,
            sparsity=parts.sparsity,
            granularity=parts.granularity,
            module=network,
            gates=parts.gates,
            budget=parts.budget,
            dual_learning_rate=parts.dual_learning_rate,
            ramp=parts.ramp,
            generator=generator,
        )
        if experts
        else None
    )
    precision = config.training.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if model_class is None:
        model_class = RoutedModel if config.custom.model is None else load_class(config.custom.model)
    model = construct(
        model_class,
        {
            "network": task_network,
            "library": library,
            "prior": prior,
            "experts": bank,
            "metric": config.head.metric,
            "scale": config.head.scale,
            "compute_dtype": getattr(torch, precision),
            "masks": parts.masks,
            "straight_through": config.guide.family == "concrete" and config.guide.straight_through,
        },
    )
    check_attributes(model, MODEL_NEEDS, "model")
    return Router(config, network, library, model.to(device), guide.to(device), device, catalog, descriptors)


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


def build_elbo(config: RunConfig, features: SourceFeatures, router: Router) -> CVaR_ELBO:
    """The objective; ``features`` serve the reference of regret, ``router`` the teacher of distillation."""
    objective = config.objective
    reference: Callable[..., Tensor] | None = None
    if objective.reference != "none":
        reference = SourceReference(
            features, objective.reference, episode_loss=objective.episode_loss, metric=config.head.metric
        )
    return CVaR_ELBO(
        rho=objective.rho,
        kl_weight=objective.kl_weight,
        entropy_weight=objective.entropy_weight,
        tail_weight=objective.tail_weight,
        episode_loss=objective.episode_loss,
        reference=reference,
        threshold=objective.threshold,
        baseline=objective.baseline,
        penalties=_distillation(config, router),
        num_particles=objective.num_particles,
        vectorize_particles=objective.num_particles > 1,
        max_plate_nesting=2 if objective.num_particles == 1 else 3,  # episodes, queries, and particles
    )


def _distillation(config: RunConfig, router: Router) -> dict[str, EpisodePenalty]:
    wanted = config.objective.distillation
    if not wanted.routing and not wanted.prediction:
        return {}
    catalog = router.catalog
    if catalog is None:
        one = Catalog.k_hot(router.library.names, config.experts.count, wanted.max_sources)
        blocks = len(router.library.space.block_names)
        catalog = one if blocks == 1 else Catalog.blockwise([one] * blocks)
    teacher = CandidateTeacher(router.model, catalog, wanted.temperature, wanted.on)
    terms: dict[str, EpisodePenalty] = {}
    if wanted.routing:
        terms["routing_distillation"] = RoutingDistillation(teacher, wanted.routing)
    if wanted.prediction:
        terms["prediction_distillation"] = PredictionDistillation(teacher.predictions, wanted.prediction)
    return terms


def _feature_width(config: RunConfig, network: TaskNetwork, library: SourceLibrary) -> int:
    """Width of the network's features, from one blank image."""
    blank = torch.zeros(1, config.data.channels, config.data.size, config.data.size)
    with torch.no_grad():
        return network(library.basis[0].float(), blank).shape[-1]


def training_settings(config: RunConfig) -> TrainingSettings:
    """The trainer's part of the config."""
    names = set(TrainingSettings.__dataclass_fields__) - {"orthogonality"}
    return TrainingSettings(
        **{k: getattr(config.training, k) for k in names}, orthogonality=config.experts.orthogonality
    )


def sources_of_routes(pool: ImagePool, library: SourceLibrary) -> tuple[int, ...]:
    """For every route of a pool (attribute or domain), the source of the same name, -1 where there is none; () if no
    source has the name of a route."""
    routes = pool.attributes if len(pool.attributes) > 1 else pool.domain_names
    found = tuple(library.names.index(name) if name in library.names else -1 for name in routes)
    return found if any(index >= 0 for index in found) else ()
