"""A tolerance with a guarantee: one half of held-out episodes chooses the risk, the other certifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyro_smat.certificates import CertifiedThreshold, select_abstention_threshold
from pyro_smat.certificates.certificate import check_delta
from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.reliability import Reliability
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.abstention import deployed_losses
from pyro_smat.inference.evaluation.evaluation import NLL_CLIP, EpisodeMeasure, Evaluation
from pyro_smat.inference.evaluation.held_out import held_out_evaluation, loss_name, population_of
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.registry import Choice, build, choose

GUARANTEE_SEED = 4_000_037


@dataclass(frozen=True)
class GuaranteedAbstention:
    """A deployment whose tolerance carries a guarantee.

    Attributes:
        deployment: with the certificate, or one that always abstains where nothing could be certified. What falls back
            is as it was.
        found: the walk over the thresholds; its coverage is that of the certifying half.
        evaluation: the held-out episodes, first the half that chose the score, then the one that certified.
    """

    deployment: Deployment
    found: CertifiedThreshold
    evaluation: Evaluation

    def __str__(self) -> str:
        certificate, reliability = self.deployment.certificate, self.deployment.reliability
        assert reliability is not None
        if certificate is None:
            return (
                f"no tolerance of risk {reliability.risk.kind!r} could be certified: this router always abstains; "
                "ask for a larger risk or delta, or for more episodes"
            )
        return (
            f"reliable when {reliability.predictor.title} is at most {reliability.tolerance:.4g}, "
            f"{100 * reliability.coverage:.0f}% of the tasks\n{certificate}"
        )


def abstain_with_guarantee(
    classifier: RoutedClassifier,
    pool: ImagePool,
    *,
    split: str,
    risk: float = 0.1,
    delta: float = 0.1,
    loss: EpisodeMeasure = "error",
    score: Choice | Mapping[str, Any] | str | None = None,
    episodes: int = 2000,
    seed: int = GUARANTEE_SEED,
    clip: float = NLL_CLIP,
    corruptions: Sequence[CorruptionLike] = (),
    features: SourceFeatures | None = None,
    progress: bool = True,
) -> GuaranteedAbstention:
    """Choose a score on one half of held-out episodes, and certify a tolerance for it on the other.

    With probability at least 1 - delta the mean loss of the tasks that are relied on is at most ``risk``
    (:func:`~pyro_smat.certificates.select_abstention_threshold`).

    Args:
        classifier: the router as it is deployed; its rule makes the losses, or its fallback where it falls back.
        score: an uncertainty score, or what chooses one, e.g. "auto"; default: as the config says.
        risk: r in (0, 1), of the loss.
        delta: probability that the guarantee fails.
        pool, split, loss, episodes, seed, clip, corruptions, features, progress: as in :func:`certify_run`.

    Raises:
        ValueError: for values out of range, an unknown score, or fewer than four episodes.
    """
    check_delta(delta)
    if episodes < 4:
        raise ValueError(f"episodes is {episodes}; expected at least 4: two halves, hundreds of them for a tight bound")
    start = classifier.deployment
    choice = choose("uncertainty_score", classifier.router.config.decision.score if score is None else score)
    wanted: UncertaintyScore = build(choice)
    evaluation = held_out_evaluation(
        classifier, pool, episodes, seed, corruptions, features, progress, scores=wanted.reads
    )
    losses, half = deployed_losses(evaluation, start, loss, clip), episodes // 2
    first, second = ({k: v[rows] for k, v in evaluation.scores.items()} for rows in (slice(half), slice(half, None)))
    chosen = wanted.fit(first, losses[:half])
    values = chosen.score.of_values(second)
    found = select_abstention_threshold(values, losses[half:], risk, delta, validation_scores=chosen.values, seed=seed)
    certificate = found.certificate
    if certificate is not None:
        named = certificate.about(loss_name(loss, clip), population_of(classifier, pool, split, corruptions))
        certificate = replace(named, note="the score was chosen on other episodes; abstaining tasks are not covered")
    deployment = start.but(
        reliability=Reliability(
            risk=choice if chosen.score is wanted else chosen.score,
            tolerance=found.threshold,
            coverage=found.coverage,
        ),
        certificate=certificate,
    )
    return GuaranteedAbstention(deployment, found, evaluation)
