"""From settings, a model and the features of its sources to the objective."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.losses import as_episode_loss
from pyro_smat.inference.objective.particle import EpisodePenalty
from pyro_smat.inference.objective.reference import SourceReference
from pyro_smat.inference.objective.settings import DistillationSettings, ObjectiveSettings
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.routing import Catalog


def build_elbo(
    settings: ObjectiveSettings, features: SourceFeatures, *, model: RoutedModel, catalog: Catalog | None = None
) -> CVaR_ELBO:
    """The objective that the settings describe.

    Args:
        settings: of the objective.
        features: of the pool that training episodes come from, for the reference of regret.
        model: gives the metric of the sources' prototypes, and the networks that a teacher tries.
        catalog: of the guide, where it has one: the routings that a teacher tries.

    Raises:
        ValueError: for settings that do not go together.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))
        >>> build_elbo(ObjectiveSettings(rho=0.2), router.features(), model=router.model).rho
        0.2
    """
    episode_loss = as_episode_loss(settings.episode_loss)
    reference: Callable[..., Tensor] | None = None
    if settings.reference != "none":
        reference = SourceReference(features, settings.reference, episode_loss=episode_loss, metric=model.metric)
    return CVaR_ELBO(
        rho=settings.rho,
        kl_weight=settings.kl_weight,
        entropy_weight=settings.entropy_weight,
        tail_weight=settings.tail_weight,
        episode_loss=episode_loss,
        reference=reference,
        threshold=settings.threshold,
        baseline=settings.baseline,
        penalties=_distillation(settings.distillation, model, catalog),
        num_particles=settings.num_particles,
        vectorize_particles=settings.num_particles > 1,
        max_plate_nesting=2,  # episodes and queries; Pyro adds that of vectorised particles
    )


def _distillation(
    settings: DistillationSettings, model: RoutedModel, catalog: Catalog | None
) -> dict[str, EpisodePenalty]:
    if not settings.routing and not settings.prediction:
        return {}
    if catalog is None:
        num_experts = 0 if model.experts is None else len(model.experts)
        one = Catalog.k_hot(model.source_names, num_experts, settings.max_sources)
        num_blocks = len(model.network.space.block_names)
        catalog = one if num_blocks == 1 else Catalog.blockwise([one] * num_blocks)
    teacher = CandidateTeacher(model, catalog, settings.temperature, settings.on)
    terms: dict[str, EpisodePenalty] = {}
    if settings.routing:
        terms["routing_distillation"] = RoutingDistillation(teacher, settings.routing)
    if settings.prediction:
        terms["prediction_distillation"] = PredictionDistillation(teacher.predictions, settings.prediction)
    return terms
