"""Certificates of a trained router, from fresh episodes that had no part in training it or in choosing anything.

A pool -> held-out episodes -> what the deployed system loses, routed or fallen back -> bounds of its mean and its tail.
They speak of new episodes from the same pool of images, shaped and corrupted alike, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_smat.certificates import Certificate, cvar_upper_bound, mean_upper_bound
from pyro_smat.certificates.certificate import check_delta
from pyro_smat.episodes.corruptions import CorruptionLike
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.abstention import deployed_losses
from pyro_smat.inference.evaluation.certificate_table import certificate_table
from pyro_smat.inference.evaluation.evaluation import NLL_CLIP, EpisodeMeasure, Evaluation
from pyro_smat.inference.evaluation.held_out import held_out_evaluation, loss_name, population_of
from pyro_smat.metrics.risk import check_rho
from pyro_smat.networks.features import SourceFeatures

CERTIFICATE_SEED = 3_000_017  # apart from training, validation and test


@dataclass(frozen=True)
class RunCertificates:
    """Bounds of what a deployed router loses on new episodes; all hold at once with probability 1 - delta.

    Attributes:
        certificates: of the mean and of the CVaR, each at its share of delta.
        delta: of all together (Bonferroni).
        evaluation: the held-out episodes.
    """

    certificates: tuple[Certificate, ...]
    delta: float
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"delta": self.delta, "certificates": [c.to_dict() for c in self.certificates]}

    def __str__(self) -> str:
        return certificate_table(self.certificates, self.delta)


def certify_run(
    classifier: RoutedClassifier,
    pool: ImagePool,
    *,
    split: str,
    loss: EpisodeMeasure = "error",
    rho: float = 0.1,
    delta: float = 0.05,
    episodes: int = 1000,
    seed: int = CERTIFICATE_SEED,
    clip: float = NLL_CLIP,
    corruptions: Sequence[CorruptionLike] = (),
    features: SourceFeatures | None = None,
    progress: bool = True,
) -> RunCertificates:
    """Bound the mean and the CVaR of what the deployed system loses: routed, or fallen back.

    Args:
        classifier: the router and its deployment.
        pool: images.
        split: what the pool is called, for the population, e.g. "test".
        loss: "error", "brier" (half of it) or "nll" (min(NLL, clip) / clip), each in [0, 1].
        rho: tail fraction in (0, 1].
        delta: probability that one of the two bounds fails; each gets half.
        episodes: N.
        seed: of the episodes; one that nothing was chosen on.
        clip: of "nll", in nats, fixed before looking.
        corruptions: of the supports; default clean.
        features: frozen features of the pool, when they are there already.
        progress: show a bar.

    Raises:
        ValueError: for a loss, rho or delta out of range.
    """
    check_delta(delta)
    check_rho(rho)
    evaluation = held_out_evaluation(classifier, pool, episodes, seed, corruptions, features, progress)
    losses = deployed_losses(evaluation, classifier.deployment, loss, clip)
    population = population_of(classifier, pool, split, corruptions)
    made = (
        mean_upper_bound(losses, delta / 2, seed=seed),
        cvar_upper_bound(losses, rho, delta / 2, seed=seed),
    )
    name = loss_name(loss, clip)
    return RunCertificates(tuple(c.about(name, population) for c in made), delta, evaluation)
