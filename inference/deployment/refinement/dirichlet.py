r"""DirichletRefinement: a posterior over the source weights of one task, as wide as the support leaves it.

w ~ Dir(kappa m),  m the router's weights, refined or not,  kappa chosen by the evidence in the support
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from scipy.special import gammaincinv
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.guides.posterior import keep_largest
from pyro_smat.guides.simplex import SimplexPosterior
from pyro_smat.inference.deployment.refinement.frank_wolfe import FrankWolfe
from pyro_smat.inference.deployment.refinement.mode import Refinement, check_count
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.registry import register
from pyro_smat.routing import SOURCE_SITE
from pyro_smat.routing.distributions import ILRDirichlet, ILRDistribution
from pyro_smat.routing.distributions.quasi_random import POINTS, uniform_points

DOUBLINGS = range(-3, 8)  # of the prior's concentration: the concentrations that are tried
CLOSED = 1e-6  # concentration that stands for 0


@register("refinement", "dirichlet")
@dataclass(frozen=True)
class DirichletRefinement:
    r"""Dirichlet weights with the router's mean, or that of a few Frank-Wolfe steps.

    Sources without weight in the mean stay closed in every draw, so a budget of sources holds for draws too. The
    concentration is that of :func:`evidence_concentration`. The experts' coefficients stay.

    The mean comes from the same support as the evidence, and leave-one-out losses are not independent: the width
    ranks tasks by how much the support says about their weights, it is not calibrated.

    Args:
        steps: of Frank-Wolfe on the mean, >= 0.
        max_active: sources with a weight in the mean, in every block; None: all may have one.
        prior: concentration of the prior a source, > 0.
        draws: from every Dirichlet that is tried, 1 to 512.

    Raises:
        ValueError: for values out of range.
    """

    steps: int = 0
    max_active: int | None = None
    prior: float = 1.0
    draws: int = 8
    name: ClassVar[str] = "dirichlet"

    def __post_init__(self) -> None:
        check_count("draws", self.draws, 1)
        if self.draws > POINTS:
            raise ValueError(f"draws is {self.draws}; expected at most {POINTS}")
        if not 0 < self.prior < math.inf:
            raise ValueError(f"prior is {self.prior}; expected a concentration > 0 and finite")
        FrankWolfe(self.steps, self.max_active)  # checks them

    def refine(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, start: Tensor) -> Refinement:
        found = FrankWolfe(self.steps, self.max_active).refine(model, basis, batch, start)
        objective = SupportObjective(model, basis, batch, found.coefficients)
        mean = torch.from_numpy(objective.start)
        sources = mean.shape[-1]
        slope = torch.from_numpy(objective.gradient(objective.start))
        kappa = evidence_concentration(objective.values, mean, slope, objective.shots, self.prior * sources, self.draws)
        weights, experts = found.coefficients.unsqueeze(0).split([sources, start.shape[-1] - sources], dim=-1)
        return replace(
            found,
            mode=self.name,
            posterior=FacePosterior(kappa * weights, experts),
            note=f"Dirichlet concentration {kappa:.3g}, prior {self.prior * sources:.3g}",
        )


def evidence_concentration(
    losses: Callable[[Tensor], Tensor], mean: Tensor, slope: Tensor, shots: int, prior: float, draws: int
) -> float:
    r"""The concentration of a Dirichlet of given mean m that balances the support's loss and a prior.

    .. math:: \min_\kappa\; n\, E_{w \sim \mathrm{Dir}(\kappa m)} f(w)
              + \mathrm{KL}(\mathrm{Dir}(\kappa m) \,\|\, \mathrm{Dir}(\kappa_0 m))

    over :math:`\kappa_0 2^j, j = -3..7`: the best of this family for the Gibbs posterior with density proportional to
    :math:`e^{-n f(w)}` under the prior :math:`\mathrm{Dir}(\kappa_0 m)`. A loss that is flat, or linear in w, says
    nothing of the concentration and leaves the prior's; one that rises around m asks for more, one that falls away
    from m for less. All concentrations see the same quasi-random points, so there is no seed.

    Args:
        losses: f, from weights ``(K, [L,] R)`` to ``(K,)``, in nats per shot.
        mean: m, ``([L,] R)`` float64 on the CPU.
        slope: gradient of f at m, likewise: the expectation of that linear part is known, and not estimated.
        shots: n.
        prior: kappa_0, > 0; a block has this concentration.
        draws: K of every concentration.
    """
    if mean.shape[-1] == 1:
        return prior
    grid = [prior * 2.0**j for j in DOUBLINGS]
    points = uniform_points(mean.numel())[:draws].view(draws, *mean.shape)
    drawn = torch.cat([_quantiles(kappa * mean, points) for kappa in grid])
    curved = losses(drawn).cpu().double() - ((drawn - mean) * slope).flatten(1).sum(-1)
    expected = curved.view(len(grid), draws).mean(1)
    prior_weights = ILRDirichlet((prior * mean).clamp(min=CLOSED))
    divergence = [kl_divergence(ILRDirichlet((kappa * mean).clamp(min=CLOSED)), prior_weights).sum() for kappa in grid]
    return grid[int((shots * expected + torch.stack(divergence)).argmin())]


class FacePosterior(SimplexPosterior):
    """Dirichlet source weights, exactly 0 where the concentration is 0, and fixed coefficients of the experts.

    Its only site is that of the sources: ``kl`` refuses priors that have one of experts too.

    Args:
        concentration: ``(B, [L,] R)``, >= 0.
        experts: ``(B, [L,] M)``.
    """

    def __init__(self, concentration: Tensor, experts: Tensor) -> None:
        blocks = concentration.shape[1] if concentration.ndim == 3 else 1
        sources = concentration.shape[-1]
        part = concentration.clamp(min=CLOSED).unsqueeze(1)
        parts = {SOURCE_SITE: ILRDirichlet(part)} if sources > 1 else {}
        super().__init__(parts, sources, experts.shape[-1], concentration, blocks)
        self.concentration, self.fixed = concentration, experts

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """One mixture: the mean with all but its k largest source weights set to 0."""
        weights = keep_largest(self.mean[..., : self.num_sources], k)
        return torch.cat([weights, self.fixed], dim=-1).unsqueeze(0), weights.new_ones(1, len(weights))

    def _coefficients(self, weights: Callable[[ILRDistribution], Tensor], leading: tuple[int, ...] = ()) -> Tensor:
        opened = (self.concentration > 0).to(self.concentration).expand(*leading, *self.concentration.shape)
        if self.parts:
            opened = opened * weights(self.parts[SOURCE_SITE]).squeeze(len(leading) + 1)
        fixed = self.fixed.expand(*leading, *self.fixed.shape)
        return torch.cat([opened / opened.sum(-1, keepdim=True), fixed], dim=-1)


def _quantiles(concentration: Tensor, points: Tensor) -> Tensor:
    """Dirichlet draws ``(K, [L,] R)`` from uniforms of this shape, gamma by gamma; continuous in the concentration."""
    gammas = torch.from_numpy(gammaincinv(concentration.clamp(min=CLOSED).numpy(), points.numpy()))
    gammas = torch.where(concentration > 0, gammas.clamp(min=1e-300), 0.0)
    return gammas / gammas.sum(-1, keepdim=True)
