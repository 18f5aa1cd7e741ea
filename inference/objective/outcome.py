"""Outcome: what routings of a batch of episodes predict and lose; validation in training and evaluation both ask here.

(coefficients, weights) of one or several decision rules -> one composed forward -> class probabilities -> accuracy and
loss of every episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.objective.reference import query_losses
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import AnyBasis, Basis

SMALLEST = 1e-12  # probability, in losses


@dataclass(frozen=True)
class Outcome:
    """Predictions of the queries of B episodes, a mixture of K networks each, against their labels.

    Attributes:
        members: class probabilities of the K networks, ``(K, B, Q, W)``; 0 at classes that an episode does not have.
        weights: of the networks, ``(K, B)``, sum 1 over K.
        batch: the episodes.
    """

    members: Tensor
    weights: Tensor
    batch: EpisodeBatch

    @cached_property
    def probabilities(self) -> Tensor:
        """Class probabilities of the mixture, ``(B, Q, W)``."""
        return (self.weights[..., None, None] * self.members).sum(0)

    @cached_property
    def accuracy(self) -> Tensor:
        """``(B,)`` share of queries that are right."""
        mask = self.batch.query.mask
        hits = (self.probabilities.argmax(-1) == self.batch.query.labels) & mask
        return hits.sum(-1) / mask.sum(-1)

    @cached_property
    def losses(self) -> Tensor:
        """``(B,)`` mean negative log-likelihood of the queries, in nats per query."""
        return query_losses(self.probabilities.clamp(min=SMALLEST).log(), self.batch)


@torch.no_grad()
def run_routings(
    model: RoutedModel,
    batch: EpisodeBatch,
    routings: Mapping[str, tuple[Tensor, Tensor]],
    *,
    basis: AnyBasis | None = None,
) -> dict[str, Outcome]:
    """Run the routings of several decision rules in one composed forward.

    Args:
        model: in evaluation mode.
        batch: B episodes with labelled queries.
        routings: rule -> coefficients ``(K, B, [L,] C)`` and their weights ``(K, B)``; K may differ.
        basis: the model's deployed basis ``(C, d)``, to spare computing it again; or ``(m, C, d)`` to average over m
            samples of the experts' gates.

    Returns:
        rule -> its outcome.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))
        >>> batch = router.features().attach(EpisodeSampler(glyph_pool("validation"), 3, 2, 1).sample(4))
        >>> mean = router.guide.posterior(batch).mean.unsqueeze(0)
        >>> list(run_routings(router.model, batch, {"mean": (mean, torch.ones(1, len(batch)))}))
        ['mean']
    """
    basis = model.basis() if basis is None else basis
    members = class_probabilities(model, torch.cat([c for c, _ in routings.values()]), batch, basis)
    parts = members.split([len(c) for c, _ in routings.values()])
    return {
        rule: Outcome(part, weights, batch) for (rule, (_, weights)), part in zip(routings.items(), parts, strict=True)
    }


def class_probabilities(model: RoutedModel, coefficients: Tensor, batch: EpisodeBatch, basis: AnyBasis) -> Tensor:
    """Class probabilities ``(K, B, Q, W)`` of routings ``(K, B, [L,] C)``, averaged over the bases ``([m,] C, d)``.

    Equal routings of a task are one network; those without experts are looked up where the batch knows their features.
    """
    if basis.ndim == 3:
        return torch.stack([class_probabilities(model, coefficients, batch, rows) for rows in basis]).mean(0)
    first, sources = first_equal(coefficients), len(model.source_names)
    runs = first == torch.arange(len(first), device=first.device).unsqueeze(-1)
    known = torch.zeros_like(runs)
    if batch.known is not None and coefficients.shape[-1] > sources:
        known = runs & ~coefficients[..., sources:].flatten(2).any(-1)
    if runs.all() and not known.any():
        return model.logits(coefficients, batch, basis).softmax(-1)
    alone = basis.sources if isinstance(basis, Basis) else basis[:sources]
    parts = [(runs & ~known, coefficients, basis), (known, coefficients[..., :sources], alone)]
    found: Tensor | None = None
    for chosen, rows, networks in parts:
        if not chosen.any():
            continue
        own = model.logits(rows[chosen], batch[chosen.nonzero()[:, 1]], networks).softmax(-1)
        if found is None:
            found = own.new_zeros(*first.shape, own.shape[1], batch.max_way)
        found[chosen] = F.pad(own, (0, batch.max_way - own.shape[-1]))
    assert found is not None
    return found[first, torch.arange(len(batch), device=first.device)]


def first_equal(coefficients: Tensor) -> Tensor:
    """For each of K routings of B tasks ``(K, B, [L,] C)``, the first one of the task that equals it: ``(K, B)``.

    Example:
        >>> first_equal(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])).tolist()  # three of one task
        [[0], [1], [0]]
    """
    flat = coefficients.flatten(2)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device).unsqueeze(-1)  # NaN too
    return ((flat.unsqueeze(1) == flat.unsqueeze(0)).all(-1) | itself).to(torch.uint8).argmax(1)
