r"""A sparse residual on any baseline's network, fitted to the support: what few changed weights can do by themselves.

.. math::
    \min_{\|\Delta\|_0 \le k} \ell_{LOO}(\theta + \Delta; S) + \tfrac{\mu}{2} \|\Delta\|^2, \qquad
    \Delta \leftarrow H_k(\Delta - \eta \nabla)

Iterative hard thresholding in parameter space through the composed network, all episodes at once. The objective is not
convex: the result is a descent from the start, without a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.evaluation.baselines.baseline import (
    Baseline,
    ComposedLibrary,
    Objective,
    ParameterBaseline,
    network_of,
    value_and_gradient,
)
from pyro_smat.registry import register

GROW, SHRINK = 1.5, 0.25  # of the step, after a step that is taken and after one that is not


@register("baseline", "sparse_residual")
@dataclass(frozen=True)
class SparseResidual(ParameterBaseline):
    """A k-sparse residual on the networks of another baseline, fitted to the leave-one-out support loss.

    Attributes:
        start: gives theta; "fallback" makes the residual without mixture, the best source the same budget for it.
        nonzeros: k, weights that may change, in [1, d]; running statistics never do.
        steps: gradients taken, at least 1.
        ridge: mu >= 0.
    """

    composed: ComposedLibrary = field(init=False, repr=False)
    start: Baseline
    nonzeros: int
    steps: int = 10
    ridge: float = 0.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "composed", network_of(self.start, "a sparse residual").composed)
        object.__setattr__(self, "name", f"{self.start.name} + sparse residual")
        check_residual(self.nonzeros, self.composed.network.space.dim, self.steps, self.ridge)

    @torch.no_grad()
    def parameters(self, batch: EpisodeBatch) -> Tensor:
        composed, theta = self.composed, network_of(self.start, self.name).parameters(batch)
        return theta + fit_residual(
            lambda changed: composed.support_loss(changed, batch),
            theta,
            torch.zeros_like(theta),
            composed.trainable,
            self.nonzeros,
            self.steps,
            self.ridge,
        )


def fit_residual(
    objective: Objective,
    theta: Tensor,
    residual: Tensor,
    trainable: Tensor,
    nonzeros: int,
    steps: int,
    ridge: float = 0.0,
) -> Tensor:
    """Iterative hard thresholding from a residual, for B tasks at once; no task ever ends worse than it began.

    The first step is Polyak's, loss / |gradient|^2 over the k largest entries of the gradient (a step that would end at
    loss 0 if the loss were linear); it grows after a step that lowers the objective, and shrinks after one that does
    not, which is not taken.

    Args:
        objective: losses ``(B,)`` of task parameters ``(B, d)``.
        theta: ``(B, d)``, fixed.
        residual: ``(B, d)`` to begin with, at most k nonzeros.
        trainable: ``(d,)`` bool, False where the residual must be zero.
        nonzeros: k.
        steps: gradients taken after that of the start.
        ridge: mu.

    Returns:
        ``(B, d)``, at most k nonzeros a row.
    """

    def evaluated(delta: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradient = value_and_gradient(objective, theta + delta)
        penalised = losses + 0.5 * ridge * delta.square().sum(-1)
        return penalised, torch.where(trainable, gradient + ridge * delta, 0.0)

    loss, gradient = evaluated(residual)
    tiny = torch.finfo(loss.dtype).tiny
    step = loss / hard_threshold(gradient, nonzeros).square().sum(-1).clamp(min=tiny)
    for _ in range(steps):
        trial = hard_threshold(residual - step.unsqueeze(-1) * gradient, nonzeros)
        trial_loss, trial_gradient = evaluated(trial)
        better = trial_loss < loss  # False for NaN
        loss = torch.where(better, trial_loss, loss)
        taken = better.unsqueeze(-1)
        residual, gradient = torch.where(taken, trial, residual), torch.where(taken, trial_gradient, gradient)
        step = step * torch.where(better, GROW, SHRINK)
    return residual


def hard_threshold(values: Tensor, nonzeros: int) -> Tensor:
    """``(B, d)`` with all but the k largest magnitudes of every row set to zero."""
    kept = values.abs().topk(nonzeros, dim=-1).indices
    return torch.zeros_like(values).scatter(-1, kept, values.gather(-1, kept))


def check_residual(nonzeros: int, dim: int, steps: int, ridge: float) -> None:
    """Raises ValueError for a budget outside [1, d], no steps or a negative ridge."""
    if not 1 <= nonzeros <= dim:
        raise ValueError(f"nonzeros is {nonzeros}; expected a budget in [1, {dim}], the number of weights")
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if not ridge >= 0:
        raise ValueError(f"ridge is {ridge}; expected at least 0")
