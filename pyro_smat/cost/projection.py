"""Projection onto a budget: the largest weights that it pays for, renormalised.

Coefficients of any posterior -> coefficients whose cost fits, before they are composed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_smat.cost.model import CostModel
from pyro_smat.float64 import in_float64

SLACK = 1e-9  # relative, for what the sums of prices round


def project_to_budget(
    coefficients: Tensor, model: CostModel, budget: float, open_entries: Tensor | None = None
) -> Tensor:
    """Keep the k largest source weights and the e largest expert weights of every mixture, as many as the budget pays.

    What is kept should weigh most: the sum over mixtures of the kept source weights and kept expert weights, of 1 each
    before. Every mixture begins with its largest source and no expert; then the mixture and pair (k, e) that gain most
    weight per unit of further cost, of those that still fit, are taken until none fits (the greedy of multiple-choice
    knapsacks). So the blocks that are thinned are those that lose least weight per unit of cost. A single mixture gets
    the best of all its pairs. With L mixtures of sources the kept weight is the best where all blocks have one price,
    and elsewhere below the best by less than the weight of the first source that did not fit.

    Args:
        coefficients: ``(*b, C)``, ``(*b, L, C)`` or ``(*b, 1, C)``, as in :meth:`CostModel.cost_of`; >= 0.
        model: the prices.
        budget: of every routing, in the model's unit, its ``fixed`` price included.
        open_entries: ``(M, L)`` of the experts, the last M coefficients.

    Returns:
        Coefficients of that shape; kept weights are renormalised on the simplex of the sources and on that of the
        experts, which are all 0 where none is kept. A routing that fits already is returned as it is. Differentiable in
        the kept weights.

    Raises:
        ValueError: for a budget below one source in every block (the least feasible one is named), shapes that do not
            fit, or weights that are negative, not finite or without any source.
    """
    mixtures, opened = model.mixtures(coefficients, open_entries)
    sources = mixtures.shape[-1] - len(opened)
    if (mixtures < 0).any() or not (mixtures[..., :sources].sum(-1) > 0).all():
        raise ValueError("coefficients hold negative weights, or no source at all; expected weights on the simplex")
    if not math.isfinite(budget) or model.least > budget * (1 + SLACK):
        raise ValueError(
            f"budget is {budget:g} {model.unit}; expected at least {model.least:.6g}, the price of one source in every "
            f"block ({sum(model.mix):.6g}) and of the forward pass ({model.fixed:.6g})"
        )
    rows = in_float64(mixtures.detach()).reshape(-1, *mixtures.shape[-2:])
    kept = _kept(rows, model, budget, opened.to(rows.device)).view_as(mixtures).to(mixtures.device)
    parts = [
        part / part.sum(-1, keepdim=True).clamp(min=torch.finfo(part.dtype).tiny)
        for part in torch.where(kept, mixtures, 0.0).split([sources, len(opened)], dim=-1)
    ]
    cheap = model.cost_of(coefficients, open_entries) <= budget * (1 + SLACK)
    fits = cheap.to(mixtures.device).unsqueeze(-1).unsqueeze(-1)
    return torch.where(fits, mixtures, torch.cat(parts, dim=-1)).view_as(coefficients)


def _kept(mixtures: Tensor, model: CostModel, budget: float, opened: Tensor) -> Tensor:
    """``(N, G, C)`` bool: what the greedy choice over blocks and pairs (k, e) keeps."""
    sources, experts = mixtures.shape[-1] - len(opened), len(opened)
    cost, weight, ranks = _pairs(mixtures, model, opened)
    rows = torch.arange(len(mixtures), device=mixtures.device)
    choice = cost.new_zeros(cost.shape[:2], dtype=torch.long)  # the first pair is (1, 0)
    left = budget * (1 + SLACK / 2) - model.fixed - cost[..., 0].sum(-1)
    while True:
        current = choice.unsqueeze(-1)
        gain, extra = weight - weight.gather(-1, current), cost - cost.gather(-1, current)
        rate = torch.where(extra > 0, gain / extra, torch.inf)
        rate = torch.where((gain > 0) & (extra <= left.view(-1, 1, 1)), rate, 0.0).flatten(1)
        best, step = rate.max(-1)
        if not (best > 0).any():
            break
        block, pair = step // cost.shape[-1], step % cost.shape[-1]
        left = left - torch.where(best > 0, extra[rows, block, pair], 0.0)
        choice[rows, block] = torch.where(best > 0, pair, choice[rows, block])
    k, e = choice // (experts + 1) + 1, choice % (experts + 1)
    limits = torch.stack([k, e], dim=-1).repeat_interleave(
        torch.tensor([sources, experts], device=choice.device), dim=-1
    )
    return ranks < limits


def _pairs(mixtures: Tensor, model: CostModel, opened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost and kept weight ``(N, G, R (M + 1))`` of every pair (k, e), e fastest; and ``(N, G, C)`` ranks."""
    count, groups, size = mixtures.shape
    experts = len(opened)
    shared = model.blocks // groups  # blocks of one mixture: all L, or 1

    def prices(values: tuple[float, ...]) -> Tensor:
        return mixtures.new_tensor(values).view(groups, shared)

    (source, source_order), (expert, expert_order) = (
        part.sort(dim=-1, descending=True, stable=True) for part in mixtures.split([size - experts, experts], dim=-1)
    )
    source_cost = (source > 0).cumsum(-1) * prices(model.mix).sum(-1, keepdim=True)  # (N, G, R)
    entries = opened.view(experts, groups, shared).transpose(0, 1).expand(count, -1, -1, -1)  # (N, G, M, shared)
    entries = entries.gather(2, expert_order.unsqueeze(-1).expand(-1, -1, -1, shared)) * (expert > 0).unsqueeze(-1)
    touched = (entries > 0).cumsum(2) > 0
    expert_cost = (touched * prices(model.residual).unsqueeze(1)).sum(-1) + model.entry * entries.sum(-1).cumsum(-1)
    none = mixtures.new_zeros(count, groups, 1)
    expert_cost = torch.cat([none, expert_cost], dim=-1)  # (N, G, M + 1)
    expert_weight = torch.cat([none, expert.cumsum(-1)], dim=-1)
    cost = source_cost.unsqueeze(-1) + expert_cost.unsqueeze(-2)
    weight = source.cumsum(-1).unsqueeze(-1) + expert_weight.unsqueeze(-2)
    ranks = torch.cat([source_order.argsort(-1), expert_order.argsort(-1)], dim=-1)
    return cost.flatten(2), weight.flatten(2), ranks
