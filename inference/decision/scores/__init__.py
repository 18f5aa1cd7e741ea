"""Uncertainty scores: what may say that a task will go wrong, before a label of any query is known; one score a file.

In: a :class:`~pyro_smat.inference.decision.routed_batch.RoutedBatch`, which computes only what is taken from it. Out: U
``(B,)``, larger is less sure. To add one, write a frozen dataclass in a file of this folder (or in one of your own,
"file.py:Name"); it then competes under "auto" and stands in reports::

    @register("uncertainty_score", "effective_sources")
    @dataclass(frozen=True)
    class EffectiveSources(UncertaintyScore):
        def __call__(self, routed: RoutedBatch) -> Tensor:
            return 1 / routed.posterior.source_weights.square().sum(-1)
"""

from pyro_smat.inference.decision.scores.argmax_entropy import ArgmaxEntropy
from pyro_smat.inference.decision.scores.auto import Auto
from pyro_smat.inference.decision.scores.composed_support_loss import ComposedSupportLoss
from pyro_smat.inference.decision.scores.disagreement import Disagreement
from pyro_smat.inference.decision.scores.entropy import Entropy
from pyro_smat.inference.decision.scores.kl_to_prior import KLToPrior
from pyro_smat.inference.decision.scores.learned import LearnedRisk
from pyro_smat.inference.decision.scores.least_confidence import LeastConfidence
from pyro_smat.inference.decision.scores.novelty import Novelty
from pyro_smat.inference.decision.scores.predictive_entropy import PredictiveEntropy
from pyro_smat.inference.decision.scores.score import FittedScore, UncertaintyScore
from pyro_smat.inference.decision.scores.support_error import SupportError
from pyro_smat.inference.decision.scores.support_loss import SupportLoss
from pyro_smat.inference.decision.scores.variance import Variance

__all__ = [
    "ArgmaxEntropy",
    "Auto",
    "ComposedSupportLoss",
    "Disagreement",
    "Entropy",
    "FittedScore",
    "KLToPrior",
    "LearnedRisk",
    "LeastConfidence",
    "Novelty",
    "PredictiveEntropy",
    "SupportError",
    "SupportLoss",
    "UncertaintyScore",
    "Variance",
]
