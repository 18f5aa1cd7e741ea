"""Inference: the objective, meta-training, decision rules, evaluation, deployment."""

from pyro_smat.inference.decision import DecisionSettings, Deployment, choose_deployment, predict
from pyro_smat.inference.deployment.classifier import AdaptedTask, RoutedClassifier
from pyro_smat.inference.evaluation import Evaluation, EvaluationSettings, evaluate
from pyro_smat.inference.evaluation.certification import certify_run
from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
from pyro_smat.inference.evaluation.label_sets import calibrate_label_sets
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
    "AdaptedTask",
    "CVaR_ELBO",
    "CandidateTeacher",
    "DecisionSettings",
    "Deployment",
    "ELBOTerms",
    "EpisodePenalty",
    "Evaluation",
    "EvaluationSettings",
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
    "choose_deployment",
    "evaluate",
    "posterior_spread",
    "predict",
    "search_catalog",
    "support_losses",
]
