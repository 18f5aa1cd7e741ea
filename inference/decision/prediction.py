"""Prediction: class probabilities of queries by a decision rule, or by any mixture of routings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import RoutingPosterior
from pyro_smat.inference.decision.named_routings import NamedRoutings
from pyro_smat.inference.decision.rules.rule import DecisionRule
from pyro_smat.inference.objective.outcome import class_probabilities
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import AnyBasis
from pyro_smat.registry import Choice, build, choose
from pyro_smat.routing import Catalog


@torch.no_grad()
def predict(
    model: RoutedModel,
    posterior: RoutingPosterior,
    batch: EpisodeBatch,
    rule: DecisionRule | Choice | Mapping[str, Any] | str = "posterior_predictive",
    *,
    generator: torch.Generator | None = None,
    basis: AnyBasis | None = None,
) -> Tensor:
    """Class probabilities of the queries, ``(B, Q, W)``; 0 at classes that an episode does not have.

    Args:
        model: in evaluation mode.
        posterior: q(c | S) of the batch.
        batch: the episodes.
        rule: a decision rule, its name, or ``{"kind": name, option: ...}``.
        generator: for rules that draw.
        basis: the model's basis ``(C, d)``, to spare computing it again; or ``(m, C, d)``, e.g. ``model.basis(8)``, to
            average over m samples of the experts' gates (which may exceed the budget) instead of the deployed masks.

    Raises:
        ValueError: for an unknown rule or option.
    """
    mixture = as_rule(rule, model)(posterior, batch, generator=generator)
    members = class_probabilities(model, mixture.coefficients, batch, model.basis() if basis is None else basis)
    return (mixture.weights[..., None, None] * members).sum(0)


def as_rule(
    rule: DecisionRule | Choice | Mapping[str, Any] | str, model: RoutedModel, catalog: Catalog | None = None
) -> DecisionRule:
    """A rule from what names one; the model and the catalog give the routings that rules may name."""
    if isinstance(rule, DecisionRule):
        return rule
    made: DecisionRule = build(choose("decision_rule", rule), {"named_routings": NamedRoutings(model, catalog)})
    return made
