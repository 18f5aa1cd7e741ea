"""Decisions: what a deployed router answers with, and when it had rather not.

In: a posterior over routings, its batch, and validation episodes to choose on. Out: class probabilities, uncertainty
scores, and one frozen :class:`Deployment` of rule, score, threshold and fallback. To add a rule or a score, write one
file in ``rules/`` or ``scores/``.
"""

from pyro_smat.inference.decision.choosing import choose_deployment, initial_deployment
from pyro_smat.inference.decision.deployment import Deployment
from pyro_smat.inference.decision.mixture import Mixture
from pyro_smat.inference.decision.prediction import predict
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.inference.decision.settings import DecisionSettings

__all__ = [
    "DecisionRule",
    "DecisionSettings",
    "Deployment",
    "Mixture",
    "UncertaintyScore",
    "choose_deployment",
    "initial_deployment",
    "predict",
]
