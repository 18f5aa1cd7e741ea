"""Inference: the objective, meta-training, decision rules, evaluation, deployment."""

from pyro_smat.inference.decision.abstention import AbstentionRule
from pyro_smat.inference.decision.rules import predict
from pyro_smat.inference.deployment.classifier import AdaptedTask, RoutedClassifier
from pyro_smat.inference.evaluation.certification import abstain_with_guarantee, calibrate_label_sets, certify_run
from pyro_smat.inference.evaluation.evaluation import Evaluation, evaluate
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO, ELBOTerms
from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.episode_loss import EPISODE_LOSSES
from pyro_smat.inference.objective.particle import EpisodePenalty
from pyro_smat.inference.objective.reference import SourceReference, support_losses
from pyro_smat.inference.objective.threshold import LearnedThreshold, QueueThreshold
from pyro_smat.inference.training.catalog_search import search_catalog
from pyro_smat.inference.training.posterior_collapse import PosteriorSpread, posterior_spread
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.trainer import MetaTrainer, TrainingSettings

__all__ = [
    "EPISODE_LOSSES",
    "AbstentionRule",
    "AdaptedTask",
    "CVaR_ELBO",
    "CandidateTeacher",
    "ELBOTerms",
    "EpisodePenalty",
    "Evaluation",
    "LearnedThreshold",
    "MetaTrainer",
    "PosteriorSpread",
    "PredictionDistillation",
    "QueueThreshold",
    "RoutedClassifier",
    "RoutingDistillation",
    "SourceReference",
    "TrainingSettings",
    "abstain_with_guarantee",
    "calibrate_guide",
    "calibrate_label_sets",
    "certify_run",
    "evaluate",
    "posterior_spread",
    "predict",
    "search_catalog",
    "support_losses",
]
