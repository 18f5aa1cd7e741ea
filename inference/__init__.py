"""Inference: the objective, meta-training, decision rules, evaluation, deployment."""

from pyro_smat.inference.decision.abstention import AbstentionRule
from pyro_smat.inference.decision.rules import predict
from pyro_smat.inference.deployment.classifier import AdaptedTask, RoutedClassifier
from pyro_smat.inference.evaluation.certification import abstain_with_guarantee, calibrate_label_sets, certify_run
from pyro_smat.inference.evaluation.evaluation import Evaluation, evaluate
from pyro_smat.inference.objective.build import build_elbo
from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
from pyro_smat.inference.objective.particle import EpisodePenalty
from pyro_smat.inference.objective.reference import SourceReference, support_losses
from pyro_smat.inference.objective.losses import EpisodeLoss
from pyro_smat.inference.objective.settings import ObjectiveSettings
from pyro_smat.inference.objective.terms import ELBOTerms
from pyro_smat.inference.objective.threshold import LearnedThreshold, QueueThreshold
from pyro_smat.inference.training.catalogs import CatalogSearch
from pyro_smat.inference.training.posterior_collapse import PosteriorSpread, posterior_spread
from pyro_smat.inference.training.temperature_scaling import calibrate_guide
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.inference.training.trainer import MetaTrainer

__all__ = [
    "AbstentionRule",
    "AdaptedTask",
    "CVaR_ELBO",
    "CandidateTeacher",
    "CatalogSearch",
    "ELBOTerms",
    "EpisodeLoss",
    "EpisodePenalty",
    "Evaluation",
    "LearnedThreshold",
    "MetaTrainer",
    "ObjectiveSettings",
    "PosteriorSpread",
    "PredictionDistillation",
    "QueueThreshold",
    "RoutedClassifier",
    "RoutingDistillation",
    "SourceReference",
    "TrainingSettings",
    "abstain_with_guarantee",
    "build_elbo",
    "calibrate_guide",
    "calibrate_label_sets",
    "certify_run",
    "evaluate",
    "posterior_spread",
    "predict",
    "support_losses",
]
