"""Inference: models and guides in; a trained, deployed and evaluated router out.

=================== ===================================================================================
``objective``       the CVaR-weighted ELBO and its episode losses
``training``        the trainer, checkpoints, catalogs
``decision``        decision rules, uncertainty scores, one frozen ``Deployment``
``assembly``        from a config to a router
``deployment``      ``RoutedClassifier``, adapted tasks, refinements, saving
``evaluation``      routers and baselines on held-out episodes, certificates
``runs``            run folders
=================== ===================================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_smat.inference.decision import DecisionSettings, Deployment, choose_deployment, predict
    from pyro_smat.inference.deployment.adapted_task import AdaptedTask
    from pyro_smat.inference.deployment.answering import TaskAnswer
    from pyro_smat.inference.deployment.classifier import RoutedClassifier
    from pyro_smat.inference.evaluation import Evaluation, evaluate
    from pyro_smat.inference.evaluation.certification import certify_run
    from pyro_smat.inference.evaluation.guarantee import abstain_with_guarantee
    from pyro_smat.inference.evaluation.label_sets import calibrate_label_sets
    from pyro_smat.inference.objective.cvar_elbo import CVaR_ELBO
    from pyro_smat.inference.objective.distillation import CandidateTeacher, PredictionDistillation, RoutingDistillation
    from pyro_smat.inference.objective.particle import EpisodePenalty
    from pyro_smat.inference.objective.reference import SourceReference, support_losses
    from pyro_smat.inference.objective.terms import ELBOTerms
    from pyro_smat.inference.objective.threshold import LearnedThreshold, QueueThreshold
    from pyro_smat.inference.training.settings import TrainingSettings
    from pyro_smat.inference.training.temperature_scaling import calibrate_guide
    from pyro_smat.inference.training.trainer import MetaTrainer

_HOMES = {
    "AdaptedTask": "deployment.adapted_task",
    "CVaR_ELBO": "objective.cvar_elbo",
    "CandidateTeacher": "objective.distillation",
    "DecisionSettings": "decision",
    "Deployment": "decision",
    "ELBOTerms": "objective.terms",
    "EpisodePenalty": "objective.particle",
    "Evaluation": "evaluation",
    "LearnedThreshold": "objective.threshold",
    "MetaTrainer": "training.trainer",
    "PredictionDistillation": "objective.distillation",
    "QueueThreshold": "objective.threshold",
    "RoutedClassifier": "deployment.classifier",
    "RoutingDistillation": "objective.distillation",
    "SourceReference": "objective.reference",
    "TaskAnswer": "deployment.answering",
    "TrainingSettings": "training.settings",
    "abstain_with_guarantee": "evaluation.guarantee",
    "calibrate_guide": "training.temperature_scaling",
    "calibrate_label_sets": "evaluation.label_sets",
    "certify_run": "evaluation.certification",
    "choose_deployment": "decision",
    "evaluate": "evaluation",
    "predict": "decision",
    "support_losses": "objective.reference",
}
__all__ = [
    "AdaptedTask",
    "CVaR_ELBO",
    "CandidateTeacher",
    "DecisionSettings",
    "Deployment",
    "ELBOTerms",
    "EpisodePenalty",
    "Evaluation",
    "LearnedThreshold",
    "MetaTrainer",
    "PredictionDistillation",
    "QueueThreshold",
    "RoutedClassifier",
    "RoutingDistillation",
    "SourceReference",
    "TaskAnswer",
    "TrainingSettings",
    "abstain_with_guarantee",
    "calibrate_guide",
    "calibrate_label_sets",
    "certify_run",
    "choose_deployment",
    "evaluate",
    "predict",
    "support_losses",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use: who needs the objective does not wait for reports."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
