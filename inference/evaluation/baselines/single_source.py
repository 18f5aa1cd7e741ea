"""One source by itself: the fallback, or the source that does best on the support.

The start of everything that fine-tunes: residuals, LoRA and probes take one of these and change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import ParameterBaseline
from pyro_smat.inference.evaluation.evaluation import BEST_BY_SUPPORT
from pyro_smat.inference.objective.reference import support_losses


@dataclass(frozen=True)
class Fallback(ParameterBaseline):
    """Source 0, whatever the task."""

    name: str = "fallback"

    def parameters(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.sources[0].expand(len(batch), -1)


@dataclass(frozen=True)
class BestSource(ParameterBaseline):
    """The source of lowest leave-one-out support loss.

    See :func:`~pyro_smat.inference.objective.reference.support_losses`.
    """

    name: str = BEST_BY_SUPPORT

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        return self.composed.sources[support_losses(batch, self.composed.metric).argmin(1)]
