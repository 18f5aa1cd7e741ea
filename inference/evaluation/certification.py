"""Certificates of a trained router, from fresh episodes that had no part in training it or in choosing anything.

A pool -> held-out episodes -> what the deployed system loses, routed or fallen back -> bounds of its mean and its tail;
or a threshold of abstention with a guarantee; or label sets. All of them speak of new episodes from the same pool of
images, shaped and corrupted alike, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyro_smat.certificates import (
    Certificate,
    CertifiedThreshold,
    LabelSetThreshold,
    cvar_upper_bound,
    label_set_threshold,
    mean_upper_bound,
    select_abstention_threshold,
)
from pyro_smat.certificates.certificate import check_delta
from pyro_smat.episodes.corruption import SupportCorruption
from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.decision.abstention import AbstentionRule, choose_score
from pyro_smat.inference.deployment.classifier import RoutedClassifier
from pyro_smat.inference.evaluation.evaluation import NLL_CLIP, EpisodeMeasure, Evaluation
from pyro_smat.inference.runs.run import evaluate_router
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.networks.features import SourceFeatures

CERTIFICATE_SEED = 3_000_017  # apart from training, validation and test
GUARANTEE_SEED = 4_000_037


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


def certificate_table(certificates: Sequence[Certificate], delta: float) -> str:
    """A short table: quantity, bound, estimate, level and N of every certificate, then what they speak of."""
    rows = [("quantity", "bound", "estimate", "level", "N", "method")]
    rows += [
        (
            certificate_name(c),
            f"{c.bound:.4f}" if c.informative else "uninformative",
            f"{c.estimate:.4f}",
            f"{100 * c.level:g}%",
            f"{c.count:,}",
            c.method,
        )
        for c in certificates
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *certificate_remarks(certificates, delta)])


def certificate_name(certificate: Certificate) -> str:
    """Quantity and loss, e.g. "CVaR (worst 10%) of error"."""
    tail = "" if certificate.rho is None else f" (worst {100 * certificate.rho:g}%)"
    return f"{certificate.quantity}{tail} of {certificate.loss}"


def certificate_remarks(certificates: Sequence[Certificate], delta: float) -> tuple[str, ...]:
    """Sentences on how certificates that share delta have to be read, alike ones once."""
    together = (
        f"All {len(certificates)} hold at once with probability {100 * (1 - delta):g}%: they share delta = {delta:g}"
    )
    ranges = [f"{c.loss} is in [{c.loss_range[0]:g}, {c.loss_range[1]:g}]" for c in certificates]
    notes = [c.note for c in certificates if c.note]
    sentences = [
        f"{together} (Bonferroni)." if len(certificates) > 1 else "",
        *(f"{text}." for text in dict.fromkeys(ranges)),
        *(f"About {c.population}." for c in certificates),
        *(f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(notes)),
    ]
    return tuple(s for s in dict.fromkeys(sentences) if s)


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
    corruption: SupportCorruption | None = None,
    features: SourceFeatures | None = None,
    progress: bool = True,
) -> RunCertificates:
    """Bound the mean and the CVaR of what the deployed system loses: routed, or fallen back where it abstains.

    Args:
        classifier: the router, its decision rule and its abstention rule.
        pool: images.
        split: what the pool is called, for the population, e.g. "test".
        loss: "error", "brier" (half of it) or "nll" (min(NLL, clip) / clip), each in [0, 1].
        rho: tail fraction in (0, 1].
        delta: probability that one of the two bounds fails; each gets half.
        episodes: N.
        seed: of the episodes; one that nothing was chosen on.
        clip: of "nll", in nats, fixed before looking.
        corruption: of the supports; default clean.
        features: frozen features of the pool, when they are there already.
        progress: show a bar.

    Raises:
        ValueError: for a loss, rho or delta out of range.
    """
    check_delta(delta)
    evaluation = _held_out(classifier, pool, episodes, seed, corruption, features, progress)
    losses = deployed_losses(classifier, evaluation, loss, clip)
    population = population_of(classifier, pool, split, corruption)
    made = (
        mean_upper_bound(losses, delta / 2, seed=seed),
        cvar_upper_bound(losses, rho, delta / 2, seed=seed),
    )
    name = _loss_name(loss, clip)
    return RunCertificates(tuple(c.about(name, population) for c in made), delta, evaluation)


@dataclass(frozen=True)
class GuaranteedAbstention:
    """An abstention rule whose threshold carries a guarantee.

    Attributes:
        rule: with the certificate, or one that always abstains where nothing could be certified.
        found: the walk over the thresholds; its coverage is that of the certifying half.
        evaluation: the held-out episodes, first the half that chose the score, then the one that certified.
    """

    rule: AbstentionRule
    found: CertifiedThreshold
    evaluation: Evaluation

    def __str__(self) -> str:
        if self.rule.certificate is None:
            return (
                f"no threshold of score {self.rule.score!r} could be certified: this rule always abstains; "
                "ask for a larger risk or delta, or for more episodes"
            )
        return (
            f"routes when {self.rule.score} is at most {self.rule.threshold:.4g}, "
            f"{100 * self.rule.coverage:.0f}% of the tasks\n{self.rule.certificate}"
        )


def abstain_with_guarantee(
    classifier: RoutedClassifier,
    pool: ImagePool,
    *,
    split: str,
    risk: float = 0.1,
    delta: float = 0.1,
    loss: EpisodeMeasure = "error",
    score: str | None = None,
    episodes: int = 2000,
    seed: int = GUARANTEE_SEED,
    clip: float = NLL_CLIP,
    corruption: SupportCorruption | None = None,
    features: SourceFeatures | None = None,
    progress: bool = True,
) -> GuaranteedAbstention:
    """Choose a score on one half of held-out episodes, and certify its threshold on the other.

    With probability at least 1 - delta the mean loss of the tasks that the rule accepts is at most ``risk``
    (:func:`~pyro_smat.certificates.select_abstention_threshold`).

    Args:
        classifier: the router; its decision rule makes the losses, its fallback is kept.
        score: see :func:`~pyro_smat.inference.decision.abstention.choose_score`; default: as the config says.
        risk: r in (0, 1), of the loss.
        delta: probability that the guarantee fails.
        pool, split, loss, episodes, seed, clip, corruption, features, progress: as in :func:`certify_run`.

    Raises:
        ValueError: for values out of range, an unknown score, or fewer than four episodes.
    """
    check_delta(delta)
    if episodes < 4:
        raise ValueError(f"episodes is {episodes}; expected at least 4: two halves, hundreds of them for a tight bound")
    decision = classifier.router.config.decision
    evaluation = _held_out(classifier, pool, episodes, seed, corruption, features, progress)
    losses, half = evaluation.bounded_loss(decision.rule, loss, clip), episodes // 2
    first, second = ({k: v[rows] for k, v in evaluation.scores.items()} for rows in (slice(half), slice(half, None)))
    chosen = choose_score(first, losses[:half], decision.score if score is None else score)
    values = chosen.rule(np.inf).uncertainty(second)
    found = select_abstention_threshold(values, losses[half:], risk, delta, validation_scores=chosen.values, seed=seed)
    certificate = found.certificate
    if certificate is not None:
        named = certificate.about(_loss_name(loss, clip), population_of(classifier, pool, split, corruption))
        certificate = replace(named, note="the score was chosen on other episodes; abstaining tasks are not covered")
    rule = chosen.rule(found.threshold, classifier.abstention.fallback, certificate=certificate)
    return GuaranteedAbstention(replace(rule, coverage=found.coverage), found, evaluation)


def calibrate_label_sets(
    classifier: RoutedClassifier, evaluation: Evaluation, coverage: float = 0.9, population: str | None = None
) -> LabelSetThreshold:
    """Label sets for the queries of accepted tasks (:meth:`AdaptedTask.predict_sets`).

    The coverage is that of queries of new *accepted* episodes; tasks that abstain get all classes.

    Args:
        classifier: with the rules as deployed.
        evaluation: held-out episodes that had no part in any choice, e.g. those of :func:`certify_run`.
        coverage: in (0, 1).
        population: what they were drawn from.

    Raises:
        ValueError: for a coverage outside (0, 1), or where every episode is abstained on.
    """
    rule = classifier.abstention
    accepted = rule.uncertainty(evaluation.scores) <= rule.threshold
    if not accepted.any():
        raise ValueError("the router abstains on every episode; expected accepted ones to calibrate label sets on")
    rows = accepted[evaluation.episode]
    found = label_set_threshold(
        evaluation.probabilities[classifier.router.config.decision.rule][rows],
        evaluation.labels[rows],
        coverage,
        episode=evaluation.episode[rows].astype(np.float64),
    )
    return replace(found, population=f"accepted tasks among {population or found.population}")


def deployed_losses(
    classifier: RoutedClassifier, evaluation: Evaluation, loss: EpisodeMeasure = "error", clip: float = NLL_CLIP
) -> FloatArray:
    """``(N,)`` in [0, 1]: the loss of the routed prediction, or of the fallback on episodes that are abstained on."""
    rule = classifier.abstention
    routed = evaluation.bounded_loss(classifier.router.config.decision.rule, loss, clip)
    abstained = rule.uncertainty(evaluation.scores) > rule.threshold
    return np.where(abstained, evaluation.bounded_loss("fallback", loss, clip), routed)


def population_of(
    classifier: RoutedClassifier, pool: ImagePool, split: str, corruption: SupportCorruption | None = None
) -> str:
    """What a certificate from episodes of a pool speaks of."""
    shape = classifier.router.config.episodes
    classes = sum(len(names) for names in pool.class_names)
    sizes = ", ".join(
        f"{name} {value if isinstance(value, int) else f'{value[0]} to {value[1]}'}"
        for name, value in (("way", shape.way), ("shot", shape.shot), ("query", shape.query))
    )
    wrong = corruption or SupportCorruption()
    low, high = wrong.label_noise_range
    supports = ["clean supports"] if wrong == SupportCorruption() else []
    if high > 0:
        noise = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        supports.append(f"label noise {noise} in {100 * wrong.label_noise_probability:g}% of the supports")
    if wrong.confounding > 0:
        supports.append(f"{100 * wrong.confounding:g}% of the supports confounded")
    return (
        f"new episodes from the {len(pool):,} images of {classes} classes of pool {split!r} "
        f"({sizes}; {', '.join(supports)}), "
        "and not about new images or classes"
    )


def _loss_name(loss: EpisodeMeasure, clip: float) -> str:
    names = {"error": "error", "brier": "Brier score / 2", "nll": f"NLL up to {clip:.3g} nats / {clip:.3g}"}
    return names[loss]


def _held_out(
    classifier: RoutedClassifier,
    pool: ImagePool,
    episodes: int,
    seed: int,
    corruption: SupportCorruption | None,
    features: SourceFeatures | None,
    progress: bool,
) -> Evaluation:
    return evaluate_router(
        classifier,
        pool,
        corruption=corruption,
        episodes=episodes,
        seed=seed,
        rules=(classifier.router.config.decision.rule, "fallback"),
        features=features,
        progress=progress,
    )
