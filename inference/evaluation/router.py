"""Evaluating a router on a pool, with episodes shaped as its config says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.defaults import own_defaults
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.assembly.seen import SeenClassWarning, described, seen_in
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.baselines.baseline import Baseline
from pyro_smat.inference.evaluation.evaluate import evaluate
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.sources import SourceLibrary

TEST_SEED = 2_000_003


@own_defaults()
def evaluate_router(
    classifier: RoutedClassifier,
    pool: ImagePool,
    *,
    corruptions: Sequence[CorruptionLike] = (),
    episodes: int = 600,
    seed: int = TEST_SEED,
    settings: EvaluationSettings | None = None,
    baselines: Sequence[Baseline] = (),
    features: SourceFeatures | None = None,
    validation: Callable[[], Sequence[EpisodeBatch]] | None = None,
    progress: bool = True,
) -> Evaluation:
    """A router and its baselines on a pool.

    Args:
        classifier: the router.
        pool: images.
        corruptions: of the supports; default clean.
        episodes: how many.
        seed: of the episodes.
        settings: rules, scores and baselines; default: as the router's config says.
        baselines: further ones, already made.
        features: frozen features of the pool, when they are there already.
        validation: makes the episodes that baselines tune on, for those that do.
        progress: show a bar.

    Warns:
        SeenClassWarning: when sources were trained on classes of the pool, as far as the router's config says.
    """
    router = classifier.router
    drawn = episodes * router.config.episodes.most_images
    seen = seen_in({k: v for k, v in router.config.data.seen.items() if not isinstance(v, str)}, pool)
    if seen:
        warnings.warn(
            f"episodes have classes that sources were trained on: {described(seen)}. What is measured here says little "
            "of new classes",
            SeenClassWarning,
            stacklevel=2,
        )
    evaluation = evaluate(
        router.model,
        router.guide,
        router.config.episodes.sampler(pool, seed=seed, corruptions=corruptions),
        features or router.features(pool, drawn=drawn, progress=progress),
        deployment=classifier.deployment,
        settings=settings or router.config.evaluation,
        baselines=baselines,
        validation=validation,
        subspaces=lambda: router.library.subspaces,
        episodes=episodes,
        seed=seed,
        source_of_route=sources_of_routes(pool, router.library),
        device=router.device,
        progress=progress,
    )
    return replace(evaluation, seen=seen)


def sources_of_routes(pool: ImagePool, library: SourceLibrary) -> tuple[int, ...]:
    """For every route of a pool (attribute or domain), the source of the same name, -1 where there is none; () if no
    source has the name of a route."""
    routes = pool.attributes if len(pool.attributes) > 1 else pool.domain_names
    found = tuple(library.names.index(name) if name in library.names else -1 for name in routes)
    return found if any(index >= 0 for index in found) else ()
