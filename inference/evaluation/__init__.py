"""Evaluation: what a router and its alternatives lose on episodes they have not seen, and what can be promised of it.

In: a model and a guide, a deployment, a pool. Out: an :class:`Evaluation`, one row an episode. Of a classifier, from
it: bounds (``certification``), a threshold of abstention with a guarantee (``guarantee``), label sets (``label_sets``).
To add a baseline, write one file in ``baselines/``.
"""

from pyro_smat.inference.assembly.evaluation_settings import EvaluationSettings
from pyro_smat.inference.evaluation.abstention import (
    AbstentionOutcome,
    DoubtOutcome,
    abstention_outcome,
    deployed_losses,
    doubt_outcome,
)
from pyro_smat.inference.evaluation.evaluate import evaluate
from pyro_smat.inference.evaluation.evaluation import Evaluation

__all__ = [
    "AbstentionOutcome",
    "DoubtOutcome",
    "Evaluation",
    "EvaluationSettings",
    "abstention_outcome",
    "deployed_losses",
    "doubt_outcome",
    "evaluate",
]
