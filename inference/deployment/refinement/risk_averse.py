"""RiskAverse: weights that are good even if some of their mass is moved to where it hurts most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.refinement.frank_wolfe import search
from pyro_smat.inference.deployment.refinement.mode import Refinement, check_count
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.inference.deployment.refinement.worst_case import WorstCaseObjective
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.registry import register


@register("refinement", "risk_averse", "risk-averse")
@dataclass(frozen=True)
class RiskAverse:
    r"""Minimise the worst case of the support loss over an l1 ball around the weights.

    .. math:: \min_{w \in \Delta_R}\; F(w), \qquad
              F(w) \approx \max_{w' \in \Delta_R, \|w' - w\|_1 \le \epsilon} f(w')

    with F of :class:`~pyro_smat.inference.deployment.refinement.worst_case.WorstCaseObjective`: the worst point comes
    from the linearised loss, the loss there is the network's own. Frank-Wolfe on F from the router's weights; the
    lowest F wins among their end, the router's weights, and the single source of least support loss. The latter is the
    exact answer of the linear surrogate :math:`f(w') = \sum_r w'_r f(e_r)`, at every radius: whatever the weights, the
    adversary leaves at best 1 - epsilon / 2 of the mass at the smallest loss and puts the rest on the largest. Where
    the loss is convex in predictions that are linear in w, that surrogate bounds the worst case from above (Jensen); in
    a deep network nothing here is a bound.

    F never increases; the support loss itself may, that is the price.

    Args:
        radius: epsilon, 0 to 2; half of it is the share of the mass that may move, in every block.
        steps: at most so many, >= 0.

    Source: multi-source paper, "Uncertainty-aware mixing".

    Raises:
        ValueError: for values out of range.
    """

    radius: float = 0.2
    steps: int = 5
    name: ClassVar[str] = "risk_averse"

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        if not 0 <= self.radius <= 2:
            raise ValueError(f"radius is {self.radius}; expected an l1 distance between mixtures, 0 to 2")

    def refine(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, start: Tensor) -> Refinement:
        objective = SupportObjective(model, basis, batch, start)
        robust = WorstCaseObjective(objective, self.radius)
        found = search(robust, objective.start, self.steps)
        alone = search(robust, best_vertex(objective), 0)
        best = alone if alone.value < found.value else found
        worst = robust.value(objective.start), robust.value(best.weights)
        return Refinement(
            self.name,
            objective.coefficients(best.weights),
            objective.value(objective.start),
            objective.value(best.weights),
            len(best.active),
            best.gap,
            best.certificate,
            f"worst found within l1 distance {self.radius:g}: {worst[0]:.3f} -> {worst[1]:.3f} nats per shot",
        )


def best_vertex(objective: SupportObjective) -> FloatArray:
    """Weights ``([L,] R)`` of the single source of least support loss."""
    vertices = torch.eye(objective.shape[-1], dtype=torch.float64)
    if len(objective.shape) > 1:
        vertices = vertices.unsqueeze(1).expand(-1, *objective.shape)
    best: FloatArray = vertices[int(objective.values(vertices).argmin())].numpy()
    return best
