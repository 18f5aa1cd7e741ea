r"""Sparse masked experts of one shared delta.

Expert m is the row :math:`z_m \odot \theta_\delta` of the basis. In training the gates z are hard-concrete (stochastic,
pushed towards their budget by a primal-dual penalty); at deployment they are binary and projected onto the budget, so
that at most :math:`(1 - \tau) d` coordinates of every expert are open, exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_smat.parameters import ParameterSpace

Granularity = Literal["coordinate", "channel", "tensor"]

TEMPERATURE = 2.0 / 3.0
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def hard_concrete(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    r"""The hard-concrete gate, one formula for training and evaluation.

    .. math:: z = \min(1, \max(0, \gamma + (\zeta - \gamma)\,
              \sigma((\mathrm{logit}(u) + \log\alpha) / \beta))), \quad u \sim U(0, 1)

    with beta = 2/3, gamma = -0.1, zeta = 1.1 (Louizos et al. 2018, eq. 10-11).

    Args:
        log_alpha: any shape.
        noise: uniform u of the same shape; None takes u = 1/2, the median gate.
    """
    logits = log_alpha if noise is None else log_alpha + torch.logit(noise, eps=1e-6)
    stretched = torch.sigmoid(logits / TEMPERATURE) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return stretched.clamp(0.0, 1.0)


def open_probability(log_alpha: Tensor) -> Tensor:
    r""":math:`P(z > 0) = \sigma(\log\alpha - \beta \log(-\gamma / \zeta))` (Louizos et al. 2018, eq. 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH))


class ExpertBank(nn.Module):
    r"""M masked experts of one shared delta.

    Args:
        space: parameter space of the network; running statistics are never opened.
        experts: M >= 0.
        sparsity: tau in [0, 1): at deployment every expert opens at most floor((1 - tau) d) coordinates.
        granularity: one gate for each "coordinate", output "channel" (first axis of a tensor) or "tensor".
        init: mean of the initial log alpha; gates differ between experts by noise of deviation 0.1, so that they can
            specialise although they share one delta.
        delta_scale: deviation of the initial delta; 0 starts exactly at the sources.
        generator: for the initial values.

    Attributes:
        delta: ``(d,)`` parameter.
        log_alpha: ``(M, G)`` parameter, G gates an expert.
        multipliers: ``(M,)`` buffer, the Lagrange multipliers of the budgets.

    Raises:
        ValueError: for a negative number of experts, a sparsity outside [0, 1), or an unknown granularity.
    """

    delta: nn.Parameter
    log_alpha: nn.Parameter
    multipliers: Tensor
    group: Tensor
    group_size: Tensor

    def __init__(
        self,
        space: ParameterSpace,
        experts: int,
        sparsity: float = 0.9,
        granularity: Granularity = "coordinate",
        *,
        init: float = 0.5,
        delta_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if experts < 0:
            raise ValueError(f"experts is {experts}; expected 0 or more")
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity (tau) is {sparsity}; expected 0 <= tau < 1, the closed share of every expert")
        self.sparsity = sparsity
        self.dim = space.dim
        group, size = _groups(space, granularity)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("group_size", size, persistent=False)
        self.delta = nn.Parameter(torch.randn(space.dim, generator=generator) * delta_scale)
        self.log_alpha = nn.Parameter(init + 0.1 * torch.randn(experts, len(size), generator=generator))
        self.register_buffer("multipliers", torch.zeros(experts))

    def __len__(self) -> int:
        return self.log_alpha.shape[0]

    @property
    def budget(self) -> int:
        """floor((1 - tau) d), the coordinates an expert may open; exact for the decimal tau (0.9 means 9/10)."""
        return math.floor((1 - Fraction(str(self.sparsity))) * self.dim)

    def rows(self, generator: torch.Generator | None = None) -> Tensor:
        """``(M, d)`` experts with freshly sampled hard-concrete gates (training)."""
        uniform = torch.rand(
            self.log_alpha.shape, generator=generator, device=self.log_alpha.device, dtype=self.log_alpha.dtype
        )
        return self._expand(hard_concrete(self.log_alpha, uniform)) * self.delta

    def masks(self) -> Tensor:
        """``(M, d)`` bool, the deployed masks: the gates of largest log alpha, at most ``budget`` coordinates.

        A gate is open when its median is at least 1/2 (:func:`hard_concrete` without noise, i.e. log alpha >= 0) and
        it fits: groups are taken in the order of their log alpha (ties: lower index) as long as the budget lasts. With
        one gate a coordinate, exactly the budget is open unless training closed more.
        """
        keep = torch.zeros_like(self.log_alpha, dtype=torch.bool)
        sizes = self.group_size.tolist()
        for expert, scores in enumerate(self.log_alpha.detach()):
            order = torch.argsort(scores, descending=True, stable=True)
            if len(sizes) == int(self.group_size.sum()):  # one coordinate a gate: no packing needed
                keep[expert, order[: self.budget]] = True
                continue
            left = self.budget
            for gate in order.tolist():
                if sizes[gate] <= left:
                    keep[expert, gate] = True
                    left -= sizes[gate]
        return self._expand(keep & (self.log_alpha >= 0))

    def projected_rows(self) -> Tensor:
        """``(M, d)`` experts as they are deployed: binary masks within the budget."""
        return self.masks() * self.delta

    def sparsities(self) -> Tensor:
        """``(M,)`` expected share of closed coordinates, 1 - E|z_m|_0 / d."""
        return 1.0 - (open_probability(self.log_alpha) * self.group_size).sum(-1) / self.dim

    def penalty(self) -> Tensor:
        r"""The Lagrangian term :math:`\sum_m \lambda_m (\tau - s_m)` with s_m the expected sparsity; a scalar.

        Minimised over the gates with the multipliers fixed; :meth:`dual_step` then moves the multipliers. It does not
        depend on how often an expert is routed to.
        """
        return (self.multipliers * (self.sparsity - self.sparsities())).sum()

    @torch.no_grad()
    def dual_step(self, learning_rate: float) -> None:
        r""":math:`\lambda_m \leftarrow \max(0, \lambda_m + \eta (\tau - s_m))`: grows while the budget is exceeded."""
        self.multipliers.add_(learning_rate * (self.sparsity - self.sparsities())).clamp_(min=0.0)

    def _expand(self, gates: Tensor) -> Tensor:
        """Gates ``(M, G)`` to coordinates ``(M, d)``; coordinates outside every group are closed."""
        padded = torch.cat([gates, gates.new_zeros(gates.shape[0], 1)], dim=-1)
        return padded[:, self.group]


def _groups(space: ParameterSpace, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Gate of every coordinate ``(d,)`` (G where none) and coordinates of every gate ``(G,)``."""
    pieces: list[Tensor] = []
    sizes: list[int] = []
    for entry in space.entries:
        if not entry.trainable:
            pieces.append(torch.full((entry.numel,), -1))
            continue
        channels = entry.shape[0] if entry.shape else 1
        gates = {"coordinate": entry.numel, "channel": channels, "tensor": 1}.get(granularity)
        if gates is None:
            raise ValueError(f"granularity is {granularity!r}; expected 'coordinate', 'channel' or 'tensor'")
        width = entry.numel // gates
        pieces.append(len(sizes) + torch.arange(gates).repeat_interleave(width))
        sizes += [width] * gates
    group = torch.cat(pieces)
    return torch.where(group < 0, len(sizes), group), torch.tensor(sizes)
