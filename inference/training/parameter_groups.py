"""Parameter groups: which parameters of a model and a guide are trained at which rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_smat.guides.router import RoutingGuide
from pyro_smat.inference.training.settings import TrainingSettings
from pyro_smat.models.routed import RoutedModel


def parameter_groups(model: RoutedModel, guide: RoutingGuide, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Groups for an optimizer: router matrices decay; vectors, the head's scale, delta and gates do not."""
    matrices = [p for p in _trained(guide) if p.ndim > 1]
    vectors = [p for p in _trained(guide) if p.ndim <= 1]
    experts = _trained(model.experts) if model.experts is not None else []
    rest = [p for p in _trained(model) if all(p is not e for e in experts)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": vectors + rest, "lr": settings.learning_rate, "weight_decay": 0.0},
    ]
    if model.experts is not None and len(model.experts):
        delta, gates = model.experts.delta, model.experts.log_alpha
        groups += [
            {"params": [delta], "lr": settings.delta_learning_rate, "weight_decay": 0.0},
            {"params": [gates], "lr": settings.gate_learning_rate, "weight_decay": 0.0},
        ]
    return groups


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
