"""Uncertainty scores: what may say that a task will go wrong, before a label of any query is known.

Posterior, support and queries of an episode -> one number a score, larger is less sure. Some are known as soon as the
support is (:data:`SUPPORT_SCORES`), some need the queries, without labels (:data:`QUERY_SCORES`).

====================  =====================================================================================
confidence            1 - the largest probability of a choice (a routing of the catalog, a source)
entropy               of the same choice
KL to the prior       minus KL(q || prior): a posterior that has left its prior has seen something
variance              of the coefficients
argmax entropy   of which source and expert have the largest weight in a draw
support loss          leave-one-out loss of the best single source
composed support loss leave-one-out loss of the network at the posterior mean
predictive entropy    of the ensemble's answer to a query, mean over queries
disagreement          its part that comes from the draws of the ensemble: their mutual information with the answer
====================  =====================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import RoutingPosterior, Uncertainty
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.composition import compose
from pyro_smat.networks.heads import leave_one_out_loss

ROUTING_SCORES: dict[str, Uncertainty] = {
    "confidence": "confidence",
    "entropy": "entropy",
    "KL to the prior": "prior",
    "variance": "variance",
    "argmax entropy": "argmax entropy",
}
SUPPORT_SCORES = (*ROUTING_SCORES, "support loss", "composed support loss")
QUERY_SCORES = ("predictive entropy", "disagreement")
SCORES = (*SUPPORT_SCORES, *QUERY_SCORES)


@torch.no_grad()
def support_scores(
    model: RoutedModel, posterior: RoutingPosterior, batch: EpisodeBatch, basis: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Every score of :data:`SUPPORT_SCORES`, each ``(B,)``.

    Args:
        model: as deployed.
        posterior: q(c | S) of the batch.
        batch: with support features; its queries are not looked at.
        basis: ``(C, d)``, or ``(m, C, d)`` to average the composed support loss over m samples of the gates.
        generator: of the scores that draw.
    """
    device = batch.way.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())  # a Monte Carlo KL draws from the global generator
        scores = {
            name: posterior.uncertainty(kind, model.prior, generator).double() for name, kind in ROUTING_SCORES.items()
        }
    scores["support loss"] = support_losses(batch, model.metric).amin(1)
    bases = basis.unsqueeze(0) if basis.ndim == 2 else basis
    scores["composed support loss"] = torch.stack(
        [composed_support_loss(model, posterior.mean, batch, rows) for rows in bases]
    ).mean(0)
    return scores


@torch.no_grad()
def composed_support_loss(model: RoutedModel, coefficients: Tensor, batch: EpisodeBatch, basis: Tensor) -> Tensor:
    """Leave-one-out prototype loss of every support under its own composed network, ``(B,)`` in nats per shot.

    Args:
        model: gives the network, the metric and the scale of the head.
        coefficients: ``(B, C)``, ``(B, L, C)`` with blocks.
        batch: the episodes.
        basis: ``(C, d)``.
    """
    theta = compose(coefficients, basis, model.network.space)
    features = model.network(theta, batch.support.images).float()
    return leave_one_out_loss(
        features, batch.support.labels, batch.support.mask, batch.class_mask, model.scale, model.metric
    )


def query_scores(probabilities: Tensor, weights: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Every score of :data:`QUERY_SCORES`, each ``(B,)`` in nats per query.

    Args:
        probabilities: ``(K, B, Q, W)`` of the K members of the ensemble.
        weights: ``(K, B)`` of the members, sum 1 over K.
        mask: ``(B, Q)`` bool, True where the query is real.
    """
    spread = weights[..., None, None]
    total = torch.special.entr((spread * probabilities).sum(0)).sum(-1)  # (B, Q)
    within = (spread.squeeze(-1) * torch.special.entr(probabilities).sum(-1)).sum(0)
    mask = mask.to(total.dtype)

    def over_queries(values: Tensor) -> Tensor:
        return (values * mask).sum(-1) / mask.sum(-1)

    return {"predictive entropy": over_queries(total), "disagreement": over_queries(total - within)}
