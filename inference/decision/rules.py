"""Decision rules: from a posterior over routings to class probabilities.

=========  ============================================================================================
rule       prediction
=========  ============================================================================================
mean       the network at the posterior mean of the coefficients
map        the network at the most probable routing
gibbs      the network at one random routing
ensemble   the average of the predicted probabilities of K random routings; exact for a catalog of at most K
top-k      a sparse stand-in: the k most probable routings of a catalog, weighted; or the k largest weights
fallback   a fixed routing, what an abstaining task uses: source 0 alone, or another one that was chosen
=========  ============================================================================================
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides import CatalogPosterior, RoutingPosterior
from pyro_smat.models.routed import RoutedModel

Rule = Literal["mean", "map", "gibbs", "ensemble", "top-k", "fallback"]
RULES: tuple[Rule, ...] = ("mean", "map", "gibbs", "ensemble", "top-k", "fallback")


def routings(
    posterior: RoutingPosterior,
    rule: Rule,
    draws: int = 8,
    k: int = 2,
    generator: torch.Generator | None = None,
    fallback: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The routings that a rule evaluates: coefficients ``(K, B, C)`` and their weights ``(K, B)``, sum 1 over K.

    ``fallback`` ``([L,] C)`` is what rule "fallback" uses; None is source 0.

    Raises:
        ValueError: for an unknown rule, or draws or k below 1.
    """
    if draws < 1 or k < 1:
        raise ValueError(f"draws is {draws} and k is {k}; expected at least 1")
    if rule == "top-k":
        return posterior.top(k)
    if rule == "ensemble":
        if isinstance(posterior, CatalogPosterior) and posterior.logits.shape[-1] <= draws:
            return posterior.top(draws)  # all of them, by their probabilities
        coefficients = posterior.sample(draws, generator)
    elif rule == "gibbs":
        coefficients = posterior.sample(1, generator)
    elif rule == "mean":
        coefficients = posterior.mean.unsqueeze(0)
    elif rule == "map":
        coefficients = posterior.mode.unsqueeze(0)
    elif rule == "fallback":
        coefficients = torch.zeros_like(posterior.mean).unsqueeze(0)
        if fallback is None:
            coefficients[..., 0] = 1.0
        else:
            coefficients = coefficients + fallback.to(coefficients)
    else:
        raise ValueError(f"rule is {rule!r}; expected one of {RULES}")
    count = coefficients.shape[0]
    return coefficients, coefficients.new_full(coefficients.shape[:2], 1.0 / count)


@torch.no_grad()
def predict(
    model: RoutedModel,
    posterior: RoutingPosterior,
    batch: EpisodeBatch,
    rule: Rule = "ensemble",
    *,
    draws: int = 8,
    k: int = 2,
    generator: torch.Generator | None = None,
    basis: Tensor | None = None,
) -> Tensor:
    """Class probabilities of the queries, ``(B, Q, W)``; 0 at classes that an episode does not have.

    Args:
        model: in evaluation mode.
        posterior: q(c | S) of the batch.
        batch: the episodes.
        rule: one of :data:`RULES`.
        draws: K of the ensemble.
        k: of "top-k".
        generator: for the random rules.
        basis: the model's basis ``(C, d)``, to spare computing it again; or ``(m, C, d)``, e.g. ``model.basis(8)``, to
            average over m samples of the experts' gates (which may exceed the budget) instead of the deployed masks.
    """
    coefficients, weights = routings(posterior, rule, draws, k, generator)
    probabilities = class_probabilities(model, coefficients, batch, model.basis() if basis is None else basis)
    return (weights.unsqueeze(-1).unsqueeze(-1) * probabilities).sum(0)


def class_probabilities(model: RoutedModel, coefficients: Tensor, batch: EpisodeBatch, basis: Tensor) -> Tensor:
    """Class probabilities ``(K, B, Q, W)`` of routings ``(K, B, C)``, averaged over the bases if there are several."""
    if basis.ndim == 2:
        return model.logits(coefficients, batch, basis).softmax(-1)
    return torch.stack([model.logits(coefficients, batch, rows).softmax(-1) for rows in basis]).mean(0)
