"""The accounting of the two decisions: what falling back saved, and whether the tasks that are doubted go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.evaluation.evaluation import NLL_CLIP, EpisodeMeasure, Evaluation
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import Interval, episode_interval

CALIBRATION_SLACK = 0.08
FALLBACK = "fallback"  # what evaluations call predictions by the fallback


@dataclass(frozen=True)
class AbstentionOutcome:
    r"""The accounting of falling back: episodes that are routed and that fall back apart, and the paired difference.

    .. math:: E[L] = P(U \le \eta)\, E[L_{post} \mid U \le \eta] + P(U > \eta)\, E[L_{fallback} \mid U > \eta]

    An identity, no guarantee; its last term is the *conditional* loss of the fallback. What is hard for the router is
    often hard for the fallback too, and its loss over all episodes in this place would promise too much.

    Attributes:
        coverage: share of episodes that are routed.
        accepted_loss, accepted_accuracy: of the routed prediction on these.
        abstained_loss: what the routed prediction would have lost on the episodes that fall back.
        fallback_loss: of the fallback on these.
        fallback_loss_of_all: of the fallback on all episodes; no part of the identity.
        gain: mean of (routed loss - fallback loss) on episodes that fall back; it helps when it is positive.
        gain_low, gain_high: its 95% interval (Student, paired).
        system_loss, system_accuracy: of the whole, routed or fallen back.
    """

    coverage: float
    accepted_loss: float
    accepted_accuracy: float
    abstained_loss: float
    fallback_loss: float
    fallback_loss_of_all: float
    gain: float
    gain_low: float
    gain_high: float
    system_loss: float
    system_accuracy: float


def abstention_outcome(evaluation: Evaluation, deployment: Deployment) -> AbstentionOutcome:
    """What happens when episodes of which the deployment is not sure use the fallback.

    Args:
        evaluation: with methods ``deployment.method`` and "fallback", and the scores that it reads.
        deployment: rule, score and threshold.
    """
    method, abstained = deployment.method, deployment.falls_back(evaluation.scores)
    ours, theirs = evaluation.loss(method), evaluation.loss(FALLBACK)
    accuracy = evaluation.accuracy(method)

    nothing = Interval(math.nan, math.nan, math.nan)
    gain = episode_interval((ours - theirs)[abstained]) if abstained.any() else nothing
    return AbstentionOutcome(
        coverage=float(1 - abstained.mean()),
        accepted_loss=_mean(ours[~abstained]),
        accepted_accuracy=_mean(accuracy[~abstained]),
        abstained_loss=_mean(ours[abstained]),
        fallback_loss=_mean(theirs[abstained]),
        fallback_loss_of_all=_mean(theirs),
        gain=gain.value,
        gain_low=gain.low,
        gain_high=gain.high,
        system_loss=float(np.where(abstained, theirs, ours).mean()),
        system_accuracy=float(np.where(abstained, evaluation.accuracy(FALLBACK), accuracy).mean()),
    )


@dataclass(frozen=True)
class DoubtOutcome:
    """What became of the tasks that are doubted and of those that are not.

    Attributes:
        doubted: share of episodes that are not reliable.
        reliable_error, doubted_error: mean shares of wrong answers of the deployed system on either; NaN for none.
        stated_error: mean predicted share of wrong answers; NaN where the risk is no such share.
        stated_misrouting, misrouting: mean stated probability of misrouting, and how often the routing was wrong with
            its 95% interval (Clopper and Pearson), on episodes whose route is known; NaN where it is not.
    """

    doubted: float
    reliable_error: float
    doubted_error: float
    stated_error: float
    stated_misrouting: float
    misrouting: Interval

    @property
    def misrouting_is_calibrated(self) -> bool:
        """Whether the interval covers what is stated, or the two differ by less than .08."""
        inside = self.misrouting.low <= self.stated_misrouting <= self.misrouting.high
        return inside or abs(self.stated_misrouting - self.misrouting.value) < CALIBRATION_SLACK


def doubt_outcome(evaluation: Evaluation, deployment: Deployment) -> DoubtOutcome:
    """Doubts, errors and misrouting of evaluated episodes; arguments as in :func:`abstention_outcome`."""
    doubted = deployment.abstains(evaluation.scores)
    errors = deployed_losses(evaluation, deployment)
    reliability = deployment.reliability
    stated = math.nan
    if reliability is not None and reliability.is_error:
        stated = float(reliability.predictor.of_values(evaluation.scores).mean())
    known = evaluation.known_source >= 0
    wrong = (evaluation.weights.argmax(1) != evaluation.known_source)[known]
    probability = math.nan
    if known.any() and deployment.misrouting is not None:
        doubts = np.clip(1.0 - evaluation.weights.max(1)[known], 0.0, 1.0)
        probability = float(deployment.misrouting.probability(doubts).mean())
    return DoubtOutcome(
        doubted=float(doubted.mean()),
        reliable_error=_mean(errors[~doubted]),
        doubted_error=_mean(errors[doubted]),
        stated_error=stated,
        stated_misrouting=probability,
        misrouting=_share(wrong),
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _share(happened: FloatArray) -> Interval:
    if not len(happened):
        return Interval(math.nan, math.nan, math.nan)
    yes, count = int(happened.sum()), len(happened)  # Clopper and Pearson's ends
    low = betaincinv(yes, count - yes + 1, 0.025) if yes else 0.0
    high = betaincinv(yes + 1, count - yes, 0.975) if yes < count else 1.0
    return Interval(float(happened.mean()), float(low), float(high))


def deployed_losses(
    evaluation: Evaluation, deployment: Deployment, loss: EpisodeMeasure = "error", clip: float = NLL_CLIP
) -> FloatArray:
    """``(N,)`` in [0, 1]: the loss of the routed prediction, or of the fallback on episodes that fall back."""
    routed = evaluation.bounded_loss(deployment.method, loss, clip)
    abstained = deployment.falls_back(evaluation.scores)
    return np.where(abstained, evaluation.bounded_loss(FALLBACK, loss, clip), routed)
