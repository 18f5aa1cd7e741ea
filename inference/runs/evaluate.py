"""The files of an evaluation: metrics.json and episodes.csv."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.files import write_atomically, write_json
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.abstention import abstention_outcome, doubt_outcome
from pyro_smat.inference.evaluation.evaluation import Evaluation
from pyro_smat.inference.runs.pools import build_pool
from pyro_smat.inference.runs.train import VALIDATION_SEED, validation_batches
from pyro_smat.metrics import aurc


def validation_of(classifier: RoutedClassifier) -> list[EpisodeBatch]:
    """The validation episodes of a router's config, on which baselines choose their settings.

    Raises:
        ValueError: for a config whose validation images are not there.
    """
    router = classifier.router
    pool = build_pool(router.config, "validation")
    sampler = router.config.episodes.sampler(pool, seed=VALIDATION_SEED)
    return validation_batches(router.config, router.features(pool), sampler, router.device)


def metrics_of(classifier: RoutedClassifier, evaluation: Evaluation) -> dict[str, Any]:
    """Everything that goes into metrics.json."""
    deployment = classifier.deployment
    losses = evaluation.loss(deployment.method)
    scores = dict(evaluation.scores)
    scores.setdefault(deployment.scorer.name, deployment.uncertainty(evaluation.scores))
    return {
        "episodes": len(evaluation),
        "rule": deployment.rule.to_dict(),
        "methods": {method: evaluation.summary(method) for method in evaluation.methods},
        "seconds_per_episode": dict(evaluation.seconds),
        "misrouting_rate": evaluation.misrouting_rate(),
        "aurc": {name: aurc(values, losses) for name, values in scores.items()},
        "abstention": {
            "score": deployment.score.kind,
            "threshold": deployment.threshold,
            "fallback": deployment.fallback,
            "certificate": None if deployment.certificate is None else deployment.certificate.to_dict(),
            **asdict(abstention_outcome(evaluation, deployment)),
        },
        "seen_by_sources": {source: list(names) for source, names in evaluation.seen.items()},
        "doubt": asdict(doubt_outcome(evaluation, deployment)),
    }


def write_evaluation(folder: Path, classifier: RoutedClassifier, evaluation: Evaluation) -> dict[str, Any]:
    """metrics.json and episodes.csv; returns the metrics."""
    metrics = metrics_of(classifier, evaluation)
    write_json(folder / "metrics.json", metrics)
    write_atomically(folder / "episodes.csv", evaluation.table().to_csv(index=False).encode())
    return metrics
