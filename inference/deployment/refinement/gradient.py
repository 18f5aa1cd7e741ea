r"""GradientRefinement: gradient steps on the experts of one task, their alpha and the size of their masks.

The variables are few, because supports are small: the logits of alpha, (M) or (L, M) with blocks, and for every expert
one offset o_m of all its gates' log alpha. Sources, their weights, delta and the order of the gates stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.deployment.refinement.mode import Refinement, active_sources, check_count
from pyro_smat.inference.deployment.refinement.objective import SupportObjective
from pyro_smat.models.routed import RoutedModel
from pyro_smat.networks.basis import Basis
from pyro_smat.networks.composition import compose
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.gates import open_probability, select_gates, straight_through
from pyro_smat.registry import register

LEAST_WEIGHT = 1e-2  # of an expert at the start: softmax has no gradient for one that a catalog closed


@register("refinement", "gradient")
@dataclass(frozen=True)
class GradientRefinement:
    r"""Adam on the support loss as a function of (alpha, o).

    The masks of an offset are those that the bank would deploy with log alpha + o_m: an expert opens as many of its
    largest gates as are open in expectation, never more than its budget. So o_m moves the size of the mask, and the
    budget cuts it off. Every step runs the network with the masks so projected and takes their gradient from the
    relaxed gates (straight-through): gates that training holds at the budget are undecided, and a network of relaxed
    gates would be far from the one that is deployed. At o = 0 the masks are the deployed ones.

    The best of all points visited is kept, the router's own among them: the support loss never increases.

    Args:
        steps: >= 0.
        learning_rate: of Adam, in units of logits, > 0.

    Raises:
        ValueError: for values out of range; by :meth:`refine`, for a model without experts.
    """

    steps: int = 20
    learning_rate: float = 0.1
    name: ClassVar[str] = "gradient"

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 0)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected > 0 and finite")

    def refine(self, model: RoutedModel, basis: Basis, batch: EpisodeBatch, start: Tensor) -> Refinement:
        bank = model.experts
        if bank is None or not len(bank):
            raise ValueError(
                "refine 'gradient' adapts the experts' alpha and masks, and this router has no experts (M = 0); "
                "expected 'frank_wolfe', 'risk_averse' or 'dirichlet', or a router with experts.count > 0"
            )
        objective = SupportObjective(model, basis, batch, start)
        before = objective.value(objective.start)
        weights = start[..., : len(basis) - len(bank)]
        unmoved = Refinement(self.name, start, before, before, active_sources(weights), note="no step was better")
        found = self._descend(bank, objective, start, before)
        if found is None:
            return unmoved
        alpha, masks = found
        coefficients = torch.cat([weights, alpha.to(weights)], dim=-1)
        note = f"experts open {masks.sum(-1).tolist()} coordinates, at most {bank.budget} each"
        changed = None if torch.equal(masks, bank.masks()) else masks
        moved = Refinement(self.name, coefficients, before, before, unmoved.active, note=note, masks=changed)
        deployed = SupportObjective(model, moved.basis(model, basis), batch, coefficients)
        after = deployed.value(deployed.start)
        return replace(moved, after=after) if after < before else unmoved

    def _descend(
        self, bank: ExpertBank, objective: SupportObjective, start: Tensor, lowest: float
    ) -> tuple[Tensor, Tensor] | None:
        """alpha ``([L,] M)`` and masks ``(M, d)`` of the lowest loss below ``lowest``, None where there is none."""
        space, dtype = objective.model.network.space, objective.basis.dtype
        best = None
        with torch.inference_mode(False), torch.no_grad():
            sources = len(objective.basis) - len(bank)
            fixed = compose(start[..., :sources], objective.basis.sources, space)
            log_alpha, delta = bank.log_alpha.detach(), bank.delta.detach()
            logits = start[..., sources:].to(delta).clamp(min=LEAST_WEIGHT).log().requires_grad_()
            offset = delta.new_zeros(len(bank), 1).requires_grad_()
            optimizer = torch.optim.Adam([logits, offset], self.learning_rate)
            for step in range(self.steps + 1):
                with torch.enable_grad():
                    alpha, scores = logits.softmax(-1), log_alpha + offset
                    selected = _projected(bank, scores.detach())
                    rows = _coordinates(bank, straight_through(scores, selected)) * delta
                    loss = objective.loss(fixed + compose(alpha, rows.to(dtype), space))
                value = float(loss.detach())
                if step and value < lowest:
                    lowest, best = value, (alpha.detach(), _coordinates(bank, selected))
                if step < self.steps:
                    logits.grad, offset.grad = torch.autograd.grad(loss, [logits, offset])
                    optimizer.step()
        return best


def _projected(bank: ExpertBank, scores: Tensor) -> Tensor:
    """``(M, G)`` bool, the gates that the bank would deploy if its log alpha were ``scores``."""
    opened = scores >= 0 if bank.gates == "top_k" else open_probability(scores)
    return select_gates(scores, bank.group_size, (opened * bank.group_size).sum(-1), bank.budget)


def _coordinates(bank: ExpertBank, gates: Tensor) -> Tensor:
    """Gates ``(M, G)`` to coordinates ``(M, d)``; those outside every group are closed."""
    return torch.cat([gates, gates.new_zeros(len(gates), 1)], dim=-1)[:, bank.group]
