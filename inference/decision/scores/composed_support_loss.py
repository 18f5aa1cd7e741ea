"""Composed support loss: how well the network at the posterior mean explains the support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.networks.composition import compose
from pyro_smat.networks.heads import leave_one_out_loss
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


@register("uncertainty_score", "composed_support_loss")
@dataclass(frozen=True)
class ComposedSupportLoss(UncertaintyScore):
    """Leave-one-out prototype loss of the support under the network at the posterior mean, in nats per shot.

    Averaged over the samples of the experts' gates, where predictions are.
    """

    def __call__(self, routed: RoutedBatch) -> Tensor:
        model, support, coefficients = routed.model, routed.batch.support, routed.posterior.mean
        losses = []
        for basis in routed.bases:
            theta = compose(coefficients, basis, model.network.space)
            features = model.network(theta, support.images).float()
            losses.append(
                leave_one_out_loss(
                    features, support.labels, support.mask, routed.batch.class_mask, model.scale, model.metric
                )
            )
        return torch.stack(losses).mean(0)
