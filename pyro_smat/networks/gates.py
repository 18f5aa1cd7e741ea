r"""Gates of the experts: which coordinates share one, how they are drawn, and how a budget picks or lowers them.

An expert has G gates with parameters log alpha; a gate opens a group of coordinates as a whole. Everything here is a
function of log alpha ``(M, G)`` and of the group sizes; pyro_smat.networks.experts puts them on a shared delta.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_smat.networks.parameters import Entry, ParameterSpace

Granularity = Literal["coordinate", "channel", "head", "block", "tensor"]
GRANULARITIES: tuple[Granularity, ...] = ("coordinate", "channel", "head", "block", "tensor")

TEMPERATURE = 2.0 / 3.0
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
BUDGET_SLACK = 1e-6  # relative: keeps an expected count below its limit whatever float32 rounds


def hard_concrete(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    r"""The hard-concrete gate, one formula for training and evaluation.

    .. math:: z = \min(1, \max(0, \gamma + (\zeta - \gamma)\,
              \sigma((\mathrm{logit}(u) + \log\alpha) / \beta))), \quad u \sim U(0, 1)

    with beta = 2/3, gamma = -0.1, zeta = 1.1 (Louizos et al. 2018, eq. 10-11).

    Args:
        log_alpha: any shape.
        noise: uniform u of a shape that broadcasts with it; None takes u = 1/2, the median gate.
    """
    logits = log_alpha if noise is None else log_alpha + torch.logit(noise, eps=1e-6)
    stretched = torch.sigmoid(logits / TEMPERATURE) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return stretched.clamp(0.0, 1.0)


def open_probability(log_alpha: Tensor) -> Tensor:
    r""":math:`P(z > 0) = \sigma(\log\alpha - \beta \log(-\gamma / \zeta))` (Louizos et al. 2018, eq. 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH))


def mean_gate(log_alpha: Tensor) -> Tensor:
    r""":math:`E[z] \approx \sigma(0.9 \log\alpha)`; the exact integral has no closed form and is nowhere 0.004 away."""
    return torch.sigmoid(0.9 * log_alpha)


def straight_through(log_alpha: Tensor, selected: Tensor) -> Tensor:
    r"""Binary gates with a gradient: ``selected`` in value, that of :math:`\sigma(\log\alpha / \beta)` backwards.

    Args:
        log_alpha: ``(M, G)``.
        selected: ``(M, G)`` bool, the open gates.

    Source: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    soft = torch.sigmoid(log_alpha / TEMPERATURE)
    return selected.to(soft.dtype) + (soft - soft.detach())


@torch.no_grad()
def select_gates(scores: Tensor, sizes: Tensor, wanted: Tensor, budget: int) -> Tensor:
    """``(M, G)`` bool, the gates of largest score, about ``wanted`` coordinates and never more than ``budget``.

    Gates in the order of their scores (ties: lower index) are willing as long as their coordinates come nearer to
    ``wanted``; a willing gate opens if what the ones before it left of the budget is enough.

    Args:
        scores: ``(M, G)``.
        sizes: ``(G,)`` integers, coordinates of every gate.
        wanted: ``(M,)`` coordinates that each expert would open.
        budget: largest number of open coordinates of an expert.
    """
    selected = torch.zeros_like(scores, dtype=torch.bool)
    equal = len(sizes) > 0 and bool((sizes == sizes[0]).all())
    for row, gates, count in zip(selected, scores, wanted.tolist(), strict=True):
        if equal:  # a threshold, found without sorting: a bank with a gate a coordinate may have 10^7 of them
            size = int(sizes[0])
            row |= _largest(gates, min(math.floor(count / size + 0.5), budget // size))
            continue
        order = gates.argsort(descending=True, stable=True)
        ordered = sizes[order]
        left, willing = budget, order[ordered.cumsum(0) - ordered / 2 <= count]
        # Every round opens the longest run that fits and drops all gates as large as the one that did not: there are
        # as many rounds as different sizes, not as many as gates.
        while len(willing := willing[sizes[willing] <= left]):
            total = sizes[willing].cumsum(0)
            fitting = int((total <= left).sum())
            row[willing[:fitting]] = True
            left -= int(total[fitting - 1])
            willing = willing[fitting:]
    return selected


def _largest(scores: Tensor, count: int) -> Tensor:
    """``(G,)`` bool, the ``count`` largest scores; ties: lower index."""
    if not 0 < count < len(scores):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - count + 1).values
    above, tied = scores > threshold, scores == threshold
    return above | (tied & (tied.cumsum(0) <= count - above.sum()))


@torch.no_grad()
def lowering_shift(log_alpha: Tensor, sizes: Tensor, limit: float) -> Tensor:
    r"""``(M,)`` shifts c <= 0 with :math:`\sum_g \mathrm{size}_g P(z_g > 0 \mid \log\alpha_g + c) \le` ``limit``.

    Zero for an expert that is within the limit, else the largest such shift to a relative accuracy of 1e-5 of the
    count: Newton steps on the logarithm of the count, kept inside a bracket by bisection.

    Args:
        log_alpha: ``(M, G)``.
        sizes: ``(G,)``.
        limit: largest expected number of open coordinates, > 0.
    """
    weights = sizes.to(log_alpha.dtype)
    target = limit * (1 - 2 * BUDGET_SLACK)

    def excess(shift: Tensor) -> tuple[Tensor, Tensor]:
        probability = open_probability(log_alpha + shift.unsqueeze(-1))
        count = probability @ weights
        slope = (probability * (1 - probability)) @ weights / count
        return (count / target).log(), slope

    shift = log_alpha.new_zeros(len(log_alpha))
    above, slope = excess(shift)
    active = above > math.log(limit / target)
    if not active.any():
        return shift
    # With this shift every gate alone is so rarely open that together they are within the limit.
    share = min(target / float(weights.sum()), 0.5)
    low = math.log(share / (1 - share)) + TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH) - log_alpha.amax(-1)
    high = torch.zeros_like(low)
    for _ in range(60):
        newton = shift - above / slope
        inside = (newton > low) & (newton < high)
        shift = torch.where(inside, newton, (low + high) / 2)
        above, slope = excess(shift)
        low, high = torch.where(above <= 0, shift, low), torch.where(above > 0, shift, high)
        if not (active & (above.abs() > BUDGET_SLACK)).any():
            return torch.where(active, shift, 0.0)
    return torch.where(active, low, 0.0)


def gate_groups(
    space: ParameterSpace, granularity: Granularity, module: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Gate of every coordinate ``(d,)`` (G where there is none: running statistics) and sizes of the gates ``(G,)``.

    "coordinate": one gate each. "channel": one for every index of a tensor's first axis. "tensor": one a tensor.
    "head": head h of an nn.MultiheadAttention owns its rows of the query, key and value projections, their biases, and
    its columns of the output projection; all other tensors have a gate a channel. "block": the blocks of ``space``, or
    of the network where the space has only one: a child of the outermost nn.Sequential, ModuleList or ModuleDict of
    several children with parameters (an encoder layer of a ViT, a residual block); outside of these, a layer.

    Args:
        space: parameter space of the network.
        granularity: what shares a gate.
        module: the network, for "head", and for "block" when the space has one block.

    Raises:
        ValueError: for an unknown granularity, a missing or different network, or "head" without attention layers.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; expected one of {', '.join(map(repr, GRANULARITIES))}")
    if granularity == "head" or (granularity == "block" and len(space.block_names) == 1):
        if module is None:
            raise ValueError(f"granularity {granularity!r} follows the network's layers; pass module=, the network")
        absent = sorted(set(space.names) - set(module.state_dict(keep_vars=True)))
        if absent:
            raise ValueError(f"module has no tensor {absent[0]!r}; expected the network of the parameter space")
    heads = _attention_heads(module) if granularity == "head" and module is not None else {}
    if granularity == "head" and not heads:
        raise ValueError(
            "granularity is 'head' and the network has no nn.MultiheadAttention; expected 'channel' instead"
        )

    count = 0
    first: dict[str, int] = {}  # gate of every unit: what shares its gates, a tensor by default
    pieces: list[Tensor] = []
    for entry in space.entries:
        if not entry.trainable:
            pieces.append(torch.full((entry.numel,), -1))
            continue
        unit = entry.name
        if entry.name in heads:
            unit, local = heads[entry.name]
        elif granularity == "block":
            unit, local = _block_of(space, entry, module), torch.tensor(0)
        elif granularity == "coordinate":
            local = torch.arange(entry.numel).view(entry.shape)
        elif granularity == "tensor" or not entry.shape:
            local = torch.tensor(0)
        else:
            local = torch.arange(entry.shape[0]).view(-1, *[1] * (len(entry.shape) - 1))
        if unit not in first:
            first[unit] = count
            count += int(local.max()) + 1
        pieces.append((first[unit] + local).expand(entry.shape).reshape(-1))
    group = torch.cat(pieces)
    group = torch.where(group < 0, count, group)
    return group, torch.bincount(group, minlength=count + 1)[:count]


def _attention_heads(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Tensor name -> its attention layer, and the head of each coordinate in a shape that expands to the tensor's."""
    owners: dict[str, tuple[str, Tensor]] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            head = torch.arange(layer.num_heads).repeat_interleave(layer.head_dim)
            rows, slices = head.view(-1, 1), head.view(1, 1, -1)
            owned = {"in_proj_weight": rows.repeat(3, 1), "in_proj_bias": head.repeat(3), "out_proj.weight": rows.mT}
            owned |= {"q_proj_weight": rows, "k_proj_weight": rows, "v_proj_weight": rows}
            owned |= {"bias_k": slices, "bias_v": slices}
            owners |= {f"{path}.{name}".lstrip("."): (path, head) for name, head in owned.items()}
    return owners


def _block_of(space: ParameterSpace, entry: Entry, module: nn.Module | None) -> str:
    if len(space.block_names) > 1 or module is None:
        return space.block_names[entry.block]
    path = entry.name.split(".")[:-1]
    owner = module
    for depth, name in enumerate(path):
        if isinstance(owner, nn.MultiheadAttention):  # its output projection is a child, and no layer of its own
            return ".".join(path[:depth])
        weighty = sum(next(child.parameters(), None) is not None for child in owner.children())
        if weighty > 1 and isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return ".".join(path[: depth + 1])
        owner = owner.get_submodule(name)
    return ".".join(path)
