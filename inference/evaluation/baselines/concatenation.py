r"""Concatenation: one ridge classifier on the features of all sources, selected by the support; nothing is mixed.

.. math:: \phi(x) = \left[\sqrt{w_r}\, f_r(x) / \|f_r(x)\|\right]_r, \qquad
    \min_V \sum_i \|V \phi(x_i) - (e_{y_i} - \tfrac1W)\|^2 + \lambda \|V\|^2

The weights :math:`w \propto e^{-\ell_r / T}` are those of the weighted average of predictions, or fitted to the support
as SUR does (:mod:`~pyro_smat.inference.evaluation.baselines.source_selection`). Runs all R networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import Baseline, ComposedLibrary
from pyro_smat.inference.evaluation.baselines.source_selection import selected_weights
from pyro_smat.inference.objective.reference import support_losses
from pyro_smat.networks.heads import compared
from pyro_smat.networks.ridge import ridge_regression
from pyro_smat.registry import register


@register("baseline", "concatenation")
@dataclass(frozen=True)
class Concatenation(Baseline):
    r"""Kernel ridge regression on the concatenated features of all sources, solved exactly in the span of the shots.

    Attributes:
        temperature: T > 0 of the weights, in nats per shot; has no say where they are selected.
        ridge: lambda > 0.
        select: weights fitted to the support, in the manner of SUR.

    Raises:
        ValueError: for a temperature or ridge that is not > 0.
    """

    composed: ComposedLibrary = field(repr=False)
    temperature: float = 0.3
    ridge: float = 0.5
    select: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.ridge > 0):
            raise ValueError(
                f"temperature is {self.temperature!r} and ridge {self.ridge!r}; expected numbers > 0 of both"
            )
        if not self.name:
            title = "ridge on the features of all sources" + ", selected by the support" * self.select
            object.__setattr__(self, "name", title)

    @torch.no_grad()
    def __call__(self, batch: EpisodeBatch) -> Tensor:
        weights = self.weights(batch)
        found = (compared(part, self.composed.metric) for part in self.composed.source_features(batch))
        support, query = (F.normalize(part, dim=-1) for part in found)
        support, query = (torch.einsum("br,brnf->bnrf", weights.sqrt(), part).flatten(2) for part in (support, query))
        ways = batch.class_mask.sum(-1).view(-1, 1, 1)
        targets = F.one_hot(batch.support.labels.clamp(min=0), batch.max_way).to(support) - 1 / ways
        targets = targets * batch.support.mask.unsqueeze(-1)
        fitted, _ = ridge_regression(support, targets, batch.support.mask.to(support), self.ridge)
        logits = self.composed.scale * (query @ fitted.mT)
        return logits.masked_fill(~batch.class_mask.unsqueeze(1), -1e4).softmax(-1)

    def weights(self, batch: EpisodeBatch) -> Tensor:
        """w ``(B, R)`` of the sources, sum 1."""
        if not self.select:
            return (-support_losses(batch, self.composed.metric) / self.temperature).softmax(-1)
        support, _ = self.composed.source_features(batch)
        shots = batch.support
        return selected_weights(support, shots.labels, shots.mask, batch.class_mask, self.composed.scale)
