"""Support error: how many shots the averaged sources get wrong when each shot is left out; needs no validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch, Labelled
from pyro_smat.inference.decision.scores.score import UncertaintyScore
from pyro_smat.models import RoutedModel
from pyro_smat.networks.heads import leave_one_out_logits
from pyro_smat.registry import register

if TYPE_CHECKING:
    from pyro_smat.inference.decision.routed_batch import RoutedBatch


def left_out_logits(model: RoutedModel, batch: EpisodeBatch) -> Tensor:
    """``(R, B, S, W)`` of every shot when it is left out, under every source, with shots trusted as the model does."""
    support = batch.support
    assert support.features is not None
    features = support.features.to(torch.promote_types(support.features.dtype, torch.float32)).movedim(1, 0)
    weights = model.fit_head(features, batch).trust
    known = support.labels, support.mask, batch.class_mask
    return leave_one_out_logits(features, *known, model.scale, model.metric, weights)


def share_wrong(predicted: Tensor, support: Labelled) -> Tensor:
    """Share of the shots whose class is not the predicted one, ``(*k, B)`` of ``(*k, B, S)``.

    Shots that are alone in their class cannot be left out and are not counted; NaN where all of them are.
    """
    same = (support.labels.unsqueeze(-1) == support.labels.unsqueeze(-2)) & support.mask.unsqueeze(-2)
    counted = support.mask & (same.sum(-1) > 1)
    return ((predicted != support.labels) & counted).sum(-1) / counted.sum(-1)


@register("uncertainty_score", "support_error")
@dataclass(frozen=True)
class SupportError(UncertaintyScore):
    """Leave-one-out error of the support, a share of its shots; 1 where every class has a single shot.

    The predictions of the sources, weighted as the posterior weights them, with trusted shots as the model trusts them.
    Shots that are alone in their class cannot be left out and are not counted.
    """

    predicts_error: ClassVar[bool] = True

    def __call__(self, routed: RoutedBatch) -> Tensor:
        logits = left_out_logits(routed.model, routed.batch)
        mixture = routed.posterior.source_weights.mT[..., None, None].to(logits) * logits.softmax(-1)
        return share_wrong(mixture.sum(0).argmax(-1), routed.batch.support).nan_to_num(1.0)
