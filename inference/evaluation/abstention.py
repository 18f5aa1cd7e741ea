"""The accounting of abstention: what a deployment did on evaluated episodes, routed or fallen back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.evaluation.evaluation import NLL_CLIP, EpisodeMeasure, Evaluation
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import Interval, episode_interval

FALLBACK = "fallback"  # what evaluations call predictions by the fallback


@dataclass(frozen=True)
class AbstentionOutcome:
    r"""The accounting of abstention: accepted and abstained episodes apart, and the paired difference.

    .. math:: E[L] = P(U \le \eta)\, E[L_{post} \mid U \le \eta] + P(U > \eta)\, E[L_{fallback} \mid U > \eta]

    An identity, no guarantee; its last term is the *conditional* loss of the fallback. What is hard for the router is
    often hard for the fallback too, and its loss over all episodes in this place would promise too much.

    Attributes:
        coverage: share of episodes that are not abstained on.
        accepted_loss, accepted_accuracy: of the routed prediction on accepted episodes.
        abstained_loss: what the routed prediction would have lost on abstained episodes.
        fallback_loss: of the fallback on abstained episodes.
        fallback_loss_of_all: of the fallback on all episodes; no part of the identity.
        gain: mean of (routed loss - fallback loss) on abstained episodes; abstaining helps when it is positive.
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
    method, abstained = deployment.method, deployment.abstains(evaluation.scores)
    ours, theirs = evaluation.loss(method), evaluation.loss(FALLBACK)
    accuracy = evaluation.accuracy(method)

    def mean(values: FloatArray) -> float:
        return float(values.mean()) if len(values) else math.nan

    nothing = Interval(math.nan, math.nan, math.nan)
    gain = episode_interval((ours - theirs)[abstained]) if abstained.any() else nothing
    return AbstentionOutcome(
        coverage=float(1 - abstained.mean()),
        accepted_loss=mean(ours[~abstained]),
        accepted_accuracy=mean(accuracy[~abstained]),
        abstained_loss=mean(ours[abstained]),
        fallback_loss=mean(theirs[abstained]),
        fallback_loss_of_all=mean(theirs),
        gain=gain.value,
        gain_low=gain.low,
        gain_high=gain.high,
        system_loss=float(np.where(abstained, theirs, ours).mean()),
        system_accuracy=float(np.where(abstained, evaluation.accuracy(FALLBACK), accuracy).mean()),
    )


def deployed_losses(
    evaluation: Evaluation, deployment: Deployment, loss: EpisodeMeasure = "error", clip: float = NLL_CLIP
) -> FloatArray:
    """``(N,)`` in [0, 1]: the loss of the routed prediction, or of the fallback on episodes that are abstained on."""
    routed = evaluation.bounded_loss(deployment.method, loss, clip)
    abstained = deployment.abstains(evaluation.scores)
    return np.where(abstained, evaluation.bounded_loss(FALLBACK, loss, clip), routed)
