"""Held-out episodes for certificates: how they are drawn, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyro_smat.episodes.corruptions import CorruptionLike, make_corruptions
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.evaluation import EpisodeMeasure, Evaluation
from pyro_smat.inference.evaluation.router import evaluate_router
from pyro_smat.networks.features import SourceFeatures


def held_out_evaluation(
    classifier: RoutedClassifier,
    pool: ImagePool,
    episodes: int,
    seed: int,
    corruptions: Sequence[CorruptionLike],
    features: SourceFeatures | None,
    progress: bool,
    scores: Iterable[UncertaintyScore] | None = None,
) -> Evaluation:
    """The deployed rule and the fallback on fresh episodes, with these scores; None: with all that a report shows."""
    everything = EvaluationSettings(rules=("uniform_mixing",))
    settings = everything if scores is None else EvaluationSettings.bare(scores)
    return evaluate_router(
        classifier,
        pool,
        corruptions=corruptions,
        episodes=episodes,
        seed=seed,
        settings=settings,
        features=features,
        progress=progress,
    )


def population_of(
    classifier: RoutedClassifier, pool: ImagePool, split: str, corruptions: Sequence[CorruptionLike] = ()
) -> str:
    """What a certificate from episodes of a pool speaks of."""
    shape = classifier.router.config.episodes
    classes = sum(len(names) for names in pool.class_names)
    sizes = ", ".join(
        f"{name} {value if isinstance(value, int) else f'{value[0]} to {value[1]}'}"
        for name, value in (("way", shape.way), ("shot", shape.shot), ("query", shape.query))
    )
    supports = [str(corruption) for corruption in make_corruptions(corruptions)] or ["clean supports"]
    return (
        f"new episodes from the {len(pool):,} images of {classes} classes of pool {split!r} "
        f"({sizes}; {', '.join(supports)}), "
        "and not about new images or classes"
    )


def loss_name(loss: EpisodeMeasure, clip: float) -> str:
    """What a certificate calls a loss."""
    names = {"error": "error", "brier": "Brier score / 2", "nll": f"NLL up to {clip:.3g} nats / {clip:.3g}"}
    return names[loss]
