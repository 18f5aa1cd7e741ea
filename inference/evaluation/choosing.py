"""Choosing how a router is deployed, on validation episodes that it has not trained on."""

from __future__ import annotations

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.decision.choosing import choose_deployment, initial_deployment
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.evaluation.evaluate import evaluate
from pyro_smat.inference.evaluation.router import sources_of_routes
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.registry import build


def choose_on(
    router: Router, sampler: EpisodeSampler, *, features: SourceFeatures | None = None, episodes: int = 64
) -> Deployment:
    """Score and threshold as the router's config says, from validation episodes.

    Args:
        router: model and guide.
        sampler: of the validation episodes.
        features: of the sampler's pool, when they are there already.
        episodes: how many.
    """
    settings = router.config.decision
    evaluation = evaluate(
        router.model,
        router.guide,
        sampler,
        features or router.features(sampler.pool),
        deployment=initial_deployment(settings),
        settings=EvaluationSettings.bare(build(settings.score).reads),
        episodes=episodes,
        source_of_route=sources_of_routes(sampler.pool, router.library),
        device=router.device,
    )
    return choose_deployment(settings, evaluation)
