"""Choosing how a router is deployed, on validation episodes of the conditions that its tasks will meet.

Conditions: clean supports, and each corruption that the router is trained on by itself and in every episode, all with
equally many episodes. A probability or a risk that is right on one mixture of episodes alone is wrong on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pyro_smat.episodes import EpisodeSampler
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.assembly.router import Router
from pyro_smat.inference.decision.choosing import (
    CLEAN,
    choose_deployment,
    initial_deployment,
    scores_to_choose_from,
)
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.evaluation.evaluate import evaluate
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.inference.evaluation.router import sources_of_routes
from pyro_smat.networks.features import SourceFeatures

CONDITION_SEEDS = 7_919  # apart from each other: condition k draws with the sampler's seed + k times this


def choose_on(
    router: Router, sampler: EpisodeSampler, *, features: SourceFeatures | None = None, episodes: int = 96
) -> Deployment:
    """How to decide, as the router's config says, from validation episodes.

    Args:
        router: model and guide.
        sampler: of the validation episodes; its corruptions are the conditions, see :func:`conditions_of`.
        features: of the sampler's pool, when they are there already.
        episodes: of each condition.
    """
    return choose_deployment(
        router.config.decision, validation_evaluations(router, sampler, features=features, episodes=episodes)
    )


def conditions_of(sampler: EpisodeSampler) -> Mapping[str, EpisodeSampler]:
    """Condition -> sampler: "clean", then every corruption of the sampler alone, in each of its episodes."""
    found = {CLEAN: sampler.with_corruptions((), seed_offset=0)}
    for corruption in sampler.corruptions:
        if corruption.probability > 0:
            name = corruption.name.replace("_", " ")
            while name in found:
                name += " again"
            certain = replace(corruption, probability=1.0)
            found[name] = sampler.with_corruptions((certain,), seed_offset=CONDITION_SEEDS * len(found))
    return found


def validation_evaluations(
    router: Router, sampler: EpisodeSampler, *, features: SourceFeatures | None = None, episodes: int = 96
) -> dict[str, Evaluation]:
    """Condition -> evaluation of what :func:`choose_deployment` reads; arguments as in :func:`choose_on`."""
    settings = router.config.decision
    found = features or router.features(sampler.pool)
    return {
        name: evaluate(
            router.model,
            router.guide,
            one,
            found,
            deployment=initial_deployment(settings),
            settings=EvaluationSettings.bare(scores_to_choose_from(settings)),
            episodes=episodes,
            source_of_route=sources_of_routes(sampler.pool, router.library),
            device=router.device,
        )
        for name, one in conditions_of(sampler).items()
    }
