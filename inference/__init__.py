"""Inference: the objective, meta-training, decision rules, evaluation, deployment."""

from pyro_smat.inference.classifier import AbstentionRule, AdaptedTask, RoutedClassifier
from pyro_smat.inference.cvar_elbo import CVaR_ELBO, ELBOTerms
from pyro_smat.inference.decision import predict
from pyro_smat.inference.evaluation import Evaluation, evaluate
from pyro_smat.inference.trainer import MetaTrainer, TrainingSettings

__all__ = [
    "AbstentionRule",
    "AdaptedTask",
    "CVaR_ELBO",
    "ELBOTerms",
    "Evaluation",
    "MetaTrainer",
    "RoutedClassifier",
    "TrainingSettings",
    "evaluate",
    "predict",
]
