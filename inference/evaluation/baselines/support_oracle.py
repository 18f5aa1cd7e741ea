r"""The support oracle: mixture and sparse residual of each task, both fitted to its support by the composition solvers.

.. math::
    \min_{w \in \Delta_R, \; \|\Delta\|_0 \le k}
    \ell_{LOO}\Bigl(\textstyle\sum_r w_r \theta^{(r)} + \Delta;\; S\Bigr) + \tfrac{\mu}{2} \|\Delta\|^2

Source: the oracle of the multi-source paper (equation 4), through a deep network: Frank-Wolfe on w and hard
thresholding on Delta in turn. It is the oracle of the support loss: where labels lie, a router can beat it on queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.refinement.frank_wolfe import descend
from pyro_smat.inference.evaluation.baselines.baseline import ComposedLibrary, ParameterBaseline
from pyro_smat.inference.evaluation.baselines.sparse_residual import check_residual, fit_residual
from pyro_smat.inference.evaluation.baselines.support_mixture import best_start, mixed, mixture_objectives
from pyro_smat.registry import register


@register("baseline", "support_oracle")
@dataclass(frozen=True)
class SupportOracle(ParameterBaseline):
    """Frank-Wolfe and hard thresholding in turn, from the best of the sources and the uniform mixture.

    Both steps only go down, so the penalised support loss is at most that of the best source.

    Attributes:
        nonzeros: k, weights that the residual may change.
        rounds: of both, at least 1.
        mixture_steps: pairwise Frank-Wolfe steps a round, at least 1.
        residual_steps: gradients of the residual a round, at least 1.
        ridge: mu >= 0.
    """

    composed: ComposedLibrary = field(repr=False)
    nonzeros: int
    rounds: int = 2
    mixture_steps: int = 5
    residual_steps: int = 5
    ridge: float = 0.0
    name: str = "support oracle (mixture + residual)"

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.mixture_steps < 1:
            raise ValueError(
                f"rounds is {self.rounds} and mixture_steps {self.mixture_steps}; expected at least 1 of each"
            )
        check_residual(self.nonzeros, self.composed.network.space.dim, self.residual_steps, self.ridge)

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        mixture, residual = self.solve(batch)
        return mixture + residual

    def solve(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Mixture and residual of every episode, each ``(B, d)``."""
        composed = self.composed
        residual = composed.sources.new_zeros(len(batch), composed.network.space.dim)
        weights = [best_start(objective) for objective in mixture_objectives(composed, batch)]
        for _ in range(self.rounds):
            objectives = mixture_objectives(composed, batch, residual)
            starts = zip(objectives, weights, strict=True)
            weights = [descend(objective, start, self.mixture_steps) for objective, start in starts]
            mixture = mixed(objectives, weights) - residual
            residual = fit_residual(
                lambda theta: composed.support_loss(theta, batch),
                mixture,
                residual,
                composed.trainable,
                self.nonzeros,
                self.residual_steps,
                self.ridge,
            )
        return mixture, residual
