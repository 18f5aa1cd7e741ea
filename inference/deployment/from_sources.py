"""From sources: the pair of model and guide that averages the predictions of all sources, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.guides.pseudo_bma import PseudoBMAGuide, Weights
from pyro_smat.inference.assembly.router import choose_device
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.decision.scores import SupportError
from pyro_smat.inference.deployment.network_check import Shape, check_constants, checked_module, checked_shape
from pyro_smat.inference.training.catalogs import k_hot_catalog
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.models import RoutedModel
from pyro_smat.models.priors import CatalogPrior
from pyro_smat.networks.build import build_network
from pyro_smat.networks.composition import TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.support_head import HeadSettings
from pyro_smat.registry import choose
from pyro_smat.sources import SourceLibrary
from pyro_smat.sources.opening import Source
from pyro_smat.sources.used_heads import warn_of_used_head

FITTED, FITTED_AT_ONCE = 8, 16  # batches of so many episodes


def averaging_pair(
    sources: SourceLibrary | Mapping[str, Source],
    network: str | Mapping[str, Any] | nn.Module,
    head: Sequence[str] = (),
    *,
    image_shape: tuple[int, int, int] | None = None,
    weights: Weights,
    temperature: float,
    settings: HeadSettings,
    device: torch.device | str = "cpu",
) -> tuple[RoutedModel, PseudoBMAGuide]:
    """Model and guide; ``settings`` of the head, other arguments as of :meth:`RoutedClassifier.from_sources`.

    Warns where images of a given shape pass through a head that is left out (:mod:`pyro_smat.sources.used_heads`).

    Raises:
        ValueError: for a network or checkpoints that cannot be mixed.
    """
    device = choose_device(device) if isinstance(device, str) else device
    named = isinstance(network, str | Mapping)
    module = build_network(choose("network", network)) if named else checked_module(network)
    library = sources if isinstance(sources, SourceLibrary) else SourceLibrary.from_files(module, sources, head=head)
    if image_shape is not None:
        warn_of_used_head(module, library, image_shape)
    catalog = k_hot_catalog(library.names, num_blocks=len(library.space.block_names))
    prior = CatalogPrior(catalog)
    check_constants(module, library.space.names)
    task_network = TaskNetwork(module, library.space)
    model = RoutedModel(task_network, library, prior=prior, **asdict(settings)).to(device)
    guide = PseudoBMAGuide(
        catalog,
        len(library),
        prior=prior,
        temperature=temperature,
        weights=weights,
        label_noise=settings.label_noise,
        metric=settings.metric,
    )
    return model, guide.to(device)


def shape_of(validation: Any, image_shape: Shape | None) -> Shape:
    """The shape of the images of validation episodes.

    Raises:
        ValueError: for anything but a sampler of episodes, or where another shape is expected.
    """
    if not isinstance(validation, EpisodeSampler):
        hint = "EpisodeSampler(pool, way=5, shot=5, query=5)"
        raise ValueError(f"validation is a {type(validation).__name__}; expected a sampler of episodes: {hint}")
    found = checked_shape(validation.pool.images.shape[1:])
    if image_shape is not None and found != image_shape:
        channels, size, _ = image_shape
        raise ValueError(
            f"validation images are {found} and image_shape is {image_shape}; expected the same: read their pool with "
            f"size={size}, channels={channels}"
        )
    return found


def fit_temperature_on(model: RoutedModel, guide: PseudoBMAGuide, validation: EpisodeSampler) -> None:
    """The temperature of the posterior under which the averaged predictions are best, on validation episodes."""
    features = SourceFeatures(model.network, model.source_basis, validation.pool)
    batches = [features.attach(validation.sample(FITTED_AT_ONCE).to(model.source_basis.device)) for _ in range(FITTED)]
    calibrate_guide(model, guide, batches)


SUPPORT_TOLERANCE = 0.3  # largest share of wrong shots of a task that is relied on, unless another is asked for


def support_deployment(tolerance: float) -> Deployment:
    """Relies on tasks whose support the averaged predictions get right, but for a share of shots."""
    return Deployment(reliability=Reliability(risk=SupportError(), tolerance=tolerance))
