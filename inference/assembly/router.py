"""From a config to a router: network, sources, prior, guide and model, each built by the registry.

The one place that says what the program supplies to the constructors that a config names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_smat.encoders import DescribedEncoder, SupportEncoder
from pyro_smat.episodes.pixels import PixelStatistics
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.pair import GUIDE_NEEDS, MODEL_NEEDS, check_attributes, check_prior
from pyro_smat.inference.training.catalogs import needs_search
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.build import build_network
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.descriptors import probe_images, source_descriptors
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.initial_weights import DrawsFrom
from pyro_smat.registry import Choice, Supply, build, takes
from pyro_smat.routing import Catalog
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.pretraining import glyph_network, shipped_glyph_sources
from pyro_smat.sources.used_heads import warn_of_used_head

LARGEST_CATALOG = 4096  # of guides that do not say how many routings they can hold
FEW = 2  # a pool of more than so many times the images that are asked for is not embedded as a whole


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
        pixels: statistics of the training images; None where unknown.
    """

    config: RunConfig
    network: nn.Module
    library: SourceLibrary
    model: RoutedModel
    guide: RoutingGuide
    device: torch.device
    catalog: Catalog | None = None
    descriptors: Tensor | None = None
    pixels: PixelStatistics | None = None

    def features(
        self,
        pool: ImagePool | None = None,
        *,
        of_catalog: bool = False,
        drawn: int | None = None,
        progress: bool = False,
    ) -> SourceFeatures:
        """Frozen source features of a pool (or of loose images).

        Args:
            pool: the images.
            of_catalog: also know the pool's features under every routing of the catalog, with experts as they are
                deployed now. Costs a forward of the pool for each, after which episodes cost none; training of experts
                runs its networks all the same.
            drawn: how many images of the pool will be asked for; of a pool of more than :data:`FEW` times as many only
                these are embedded. Default: all are.
            progress: as :class:`SourceFeatures` has it.
        """
        model, routings, experts = self.model, None, None
        if of_catalog and self.catalog is not None:
            routings = self.catalog.coefficients
            if model.experts is not None and len(model.experts):
                experts = model.experts.projected_rows().to(model.compute_dtype)
        basis = Basis(model.source_basis, experts)
        singly = pool is not None and drawn is not None and drawn * FEW < len(pool)
        return SourceFeatures(model.network, basis, pool, routings=routings, singly=singly, progress=progress)

    def __repr__(self) -> str:
        return (
            f"Router({self.config.guide.kind} guide over {len(self.library)} sources ({', '.join(self.library.names)}) "
            f"and {self.config.experts.count} experts, {self.config.prior.kind} prior, on {self.device})"
        )


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" (also "cuda:1") or "mps" to a device.

    Raises:
        ValueError: for another name, or a device that PyTorch does not find.
    """
    kind = name.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device is {name!r}; expected 'auto', 'cpu', 'cuda' or 'mps'")
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if found[device]))
    if not found[kind]:
        raise ValueError(f"device is {name!r} but PyTorch finds none; use 'auto' or 'cpu'")
    return torch.device(name)


def source_files(config: RunConfig) -> tuple[nn.Module, Mapping[str, Path]]:
    """The network template and the checkpoints that the config names (the shipped glyph sources where it names none).

    Raises:
        ValueError: for a config that names no files and is not about the built-in glyphs.
    """
    if config.sources.files:
        generator = torch.Generator().manual_seed(config.seed)  # of a head that the sources leave out
        return build_network(config.sources.network, generator=generator), config.sources.files
    plain = config.sources.network == RunConfig().sources.network
    if config.data.kind != "glyphs" or not plain:
        raise ValueError(
            "[sources] names no files; only the built-in glyphs have sources of their own: "
            'add files = {name = "checkpoint.safetensors", ...}, the fallback first'
        )
    return glyph_network(), shipped_glyph_sources()


def open_library(config: RunConfig) -> tuple[nn.Module, SourceLibrary]:
    """The network template and the library of the config's sources.

    Warns where the features pass through a head that is left out (:mod:`pyro_smat.sources.used_heads`).
    """
    network, files = source_files(config)
    blocks, head = config.sources.blocks or None, config.sources.head
    library = SourceLibrary.from_files(network, files, blocks, head=head)
    warn_of_used_head(network, library, (config.data.channels, config.data.size, config.data.size))
    return network, library


@own_defaults()
def build_router(
    config: RunConfig,
    device: torch.device | str = "cpu",
    *,
    opened: tuple[nn.Module, SourceLibrary] | None = None,
    catalog: Catalog | None = None,
    descriptors: Tensor | None = None,
) -> Router:
    """Model and guide as the config says, with initial values from its seed.

    Args:
        config: the config.
        device: where to put them.
        opened: network and sources, when they are open already.
        catalog: of a guide over a catalog; default: the one that the config names, where it needs no search.
        descriptors: of the sources, when they are known already.

    Raises:
        ValueError: for parts that do not go together, each named.
    """
    device = torch.device(device)
    network, library = opened or open_library(config)
    catalog = default_catalog(config, library) if catalog is None else catalog
    task_network = TaskNetwork(network, library.space)
    if not config.sources.descriptors:
        descriptors = None
    elif descriptors is None:
        probes = probe_images(config.data.channels, config.data.size)
        descriptors = source_descriptors(task_network, library.basis.to(device), probes).cpu()
    bank = build_experts(config, network, library)
    precision = config.training.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"

    def encoder() -> SupportEncoder:
        plain = build(config.guide.options["encoder"], supply)
        return plain if descriptors is None else DescribedEncoder(plain, descriptors)

    supply = Supply(
        num_sources=lambda: len(library),
        num_experts=lambda: config.experts.count,
        num_blocks=lambda: len(library.space.block_names),
        catalog=lambda: catalog,
        guide_class=lambda: config.guide.factory,
        prior=lambda: build_prior(config.prior, supply),
        encoder=encoder,
        feature_width=lambda: _feature_width(config, task_network, library),
        network=lambda: task_network,
        library=lambda: library,
        experts=lambda: bank,
        compute_dtype=lambda: getattr(torch, precision),
        straight_through=lambda: getattr(guide, "straight_through", False),
    )
    with DrawsFrom(torch.Generator().manual_seed(config.seed)):
        check_prior(config.prior, config.guide, catalog)
        prior: RoutingPrior = supply["prior"]
        guide: RoutingGuide = build(config.guide, supply if config.guide_on_prior else supply.but(prior=None))
    check_attributes(guide, GUIDE_NEEDS, "guide")
    model: RoutedModel = build(config.model, supply)
    check_attributes(model, MODEL_NEEDS, "model")
    assert model.prior is prior or config.model.kind != "routed"
    return Router(config, network, library, model.to(device), guide.to(device), device, catalog, descriptors)


def build_prior(choice: Choice, supply: Mapping[str, object]) -> RoutingPrior:
    """The prior of a config; the class of the guide says what "uniform" and "cost_aware" mean."""
    return build(choice, supply)


def build_experts(config: RunConfig, network: nn.Module, library: SourceLibrary) -> ExpertBank | None:
    """The experts of a config, with initial values from its seed; None for none."""
    experts = config.experts
    if not experts.count:
        return None
    return ExpertBank(
        library.space,
        experts.count,
        sparsity=experts.sparsity,
        granularity=experts.granularity,
        module=network,
        gates=experts.gates,
        budget=experts.budget,
        dual_learning_rate=experts.dual_learning_rate,
        ramp=experts.ramp,
        generator=torch.Generator().manual_seed(config.seed),
    )


def default_catalog(config: RunConfig, library: SourceLibrary) -> Catalog | None:
    """The catalog that the guide of a config names; None for guides that take none.

    Raises:
        ValueError: when the config wants a catalog that is searched.
    """
    if not takes(config.guide, "catalog"):
        return None
    choice: Choice = config.guide.options["catalog"]
    if needs_search(choice):
        raise ValueError(
            f"guide.catalog is {choice.kind!r}: the catalog has to be searched first; train_router does it, or pass "
            "catalog=search_catalog(...)"
        )
    return build(choice, catalog_supply(config, library))


def catalog_supply(config: RunConfig, library: SourceLibrary, **more: object) -> dict[str, object]:
    """What constructors of catalogs may ask for."""
    largest = getattr(config.guide.factory, "largest_catalog", None)
    return {
        "source_names": library.names,
        "num_experts": config.experts.count,
        "num_blocks": len(library.space.block_names),
        "limit": LARGEST_CATALOG if largest is None else largest(config.guide.options),
        **more,
    }


def _feature_width(config: RunConfig, network: TaskNetwork, library: SourceLibrary) -> int:
    """Width of the network's features, from one blank image."""
    blank = torch.zeros(1, config.data.channels, config.data.size, config.data.size)
    with torch.no_grad():
        return network(library.basis[0].float(), blank).shape[-1]
