r"""Mixtures fitted to one task by Frank-Wolfe through the composed network, without a router and without a residual.

.. math:: \min_{w \in \Delta_R} \; \ell\Bigl(\textstyle\sum_r w_r \theta^{(r)} + \Delta\Bigr)

ell is the support loss for what a user could do, the query loss for hindsight; Delta is fixed (and 0 for a mixture by
itself). Through a deep network ell is not convex in w: the result is a descent from its start, without a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.refinement.frank_wolfe import descend
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.inference.evaluation.baselines.baseline import ComposedLibrary, ParameterBaseline
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.composition import compose
from pyro_smat.registry import register


@register("baseline", "support_mixture")
@dataclass(frozen=True)
class SupportMixture(ParameterBaseline):
    """The mixture that Frank-Wolfe finds on the support loss from the uniform one, for each task.

    Attributes:
        steps: pairwise Frank-Wolfe steps, at least 1.
    """

    composed: ComposedLibrary = field(repr=False)
    steps: int = 10
    name: str = "mixture on the support, no residual"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1 Frank-Wolfe step")

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        objectives = mixture_objectives(self.composed, batch)
        return mixed(objectives, [descend(one, one.start, self.steps) for one in objectives])


def mixture_objectives(
    composed: ComposedLibrary,
    batch: EpisodeBatch,
    residual: Tensor | None = None,
    kind: type[SupportObjective] = SupportObjective,
) -> list[SupportObjective]:
    """The loss of every episode as a function of source weights, ``start`` uniform.

    Args:
        composed: the library.
        batch: B episodes.
        residual: Delta ``(B, d)``, 0 by default; it enters like an expert of coefficient 1.
        kind: SupportObjective, or a subclass with another loss.
    """
    count, blocks = len(composed.library), len(composed.network.space.block_names)
    uniform = composed.sources.new_full((count,) if blocks == 1 else (blocks, count), 1 / count)
    coefficients = torch.cat([uniform, torch.ones_like(uniform[..., :1])], dim=-1)
    residual = composed.sources.new_zeros(len(batch), composed.network.space.dim) if residual is None else residual
    return [
        kind(composed.model, Basis(composed.sources, residual[i : i + 1]), batch[i : i + 1], coefficients)
        for i in range(len(batch))
    ]


def mixed(objectives: list[SupportObjective], weights: list[FloatArray]) -> Tensor:
    """Task parameters ``(B, d)``, residuals included, of the weights ``([L,] R)`` of every episode."""
    pairs = zip(objectives, weights, strict=True)
    return torch.stack([compose(o.coefficients(w), o.basis, o.model.network.space) for o, w in pairs])


def best_start(objective: SupportObjective) -> FloatArray:
    """The best of the uniform mixture and the sources by themselves."""
    shape, sources = objective.shape, objective.shape[-1]
    candidates = [objective.start, *(np.broadcast_to(np.eye(sources)[r], shape).copy() for r in range(sources))]
    return min(candidates, key=objective.value)
