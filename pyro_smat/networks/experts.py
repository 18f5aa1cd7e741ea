r"""Sparse masked experts of one shared delta.

Expert m is the row :math:`z_m \odot \theta_\delta` of the basis. In training the gates z are hard-concrete (stochastic)
or the largest ones (top-k), and a budget is enforced around every optimizer step; at deployment they are binary and
within the budget, so that at most :math:`(1 - \tau) d` coordinates of every expert are open, exactly.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pyro_smat.networks.gates import (
    Granularity,
    gate_groups,
    hard_concrete,
    lowering_shift,
    mean_gate,
    open_probability,
    select_gates,
    straight_through,
)
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.registry import Remembered

Gates = Literal["hard_concrete", "top_k"]
Budget = Literal["primal_dual", "projection"]

PROPORTIONAL = 4.0  # weight of the violation itself: it brakes before the budget, where an integral overshoots
LARGEST_VIOLATION = 0.1  # that the integral sees: the long way down from the initial gates must not wind it up
LARGEST_MULTIPLIER = 10.0  # ten times the loss gradient closes any gate


class ExpertBank(Remembered, nn.Module):
    r"""M masked experts of one shared delta.

    Training: ``loss.backward()``, :meth:`after_backward`, clipping, ``optimizer.step()``, :meth:`after_step`.

    Args:
        space: parameter space of the network; running statistics are never opened.
        num_experts: M >= 0.
        sparsity: tau in [0, 1): at deployment every expert opens at most floor((1 - tau) d) coordinates.
        granularity: what shares a gate: a "coordinate", an output "channel" (first axis of a tensor), an attention
            "head", a "block" or a "tensor"; see :func:`pyro_smat.networks.gates.gate_groups`.
        module: the network; only "head" and "block" read its structure, and it is not kept.
        gates: "hard_concrete": stochastic. "top_k": the deployed masks also in training, with a straight-through
            gradient; the budget holds in every forward pass.
        budget: how hard-concrete gates are kept within it. "projection": after every step the log alpha of an expert
            that is over its budget are lowered by one constant, until the expected number of open coordinates is
            within it. "primal_dual": a multiplier per expert weighs the gradient of its sparsity against the loss.
        dual_learning_rate: of the multipliers, per step and unit of violation (a logarithm).
        ramp: share of the training over which tau rises to ``sparsity``; see :meth:`set_progress`.
        init: mean of the initial log alpha; gates differ between experts by noise of standard deviation 0.1, so that
            they can specialise although they share one delta.
        delta_scale: standard deviation of the initial delta; 0 starts exactly at the sources.
        generator: for the initial values.

    Attributes:
        delta: ``(d,)`` parameter.
        log_alpha: ``(M, G)`` parameter, G gates an expert.
        multipliers: ``(M,)`` buffer, the Lagrange multipliers of the budgets; zero under "projection".
        progress: scalar buffer in [0, 1], how much of the training is over; 1 until :meth:`set_progress` says less.

    Example:
        >>> space = ParameterSpace.from_module(nn.Linear(10, 1))
        >>> bank = ExpertBank(space, 2, sparsity=0.5, delta_scale=1.0)
        >>> bank.projected_rows().shape, bank.budget
        (torch.Size([2, 11]), 5)

    Raises:
        ValueError: for a negative number of experts, a sparsity outside [0, 1), a ramp outside [0, 1], unknown or
            incompatible options, or a network that ``granularity`` cannot use.
    """

    delta: nn.Parameter
    log_alpha: nn.Parameter
    multipliers: Tensor
    progress: Tensor
    group: Tensor
    group_size: Tensor

    def __init__(
        self,
        space: ParameterSpace,
        num_experts: int,
        *,
        sparsity: float = 0.9,
        granularity: Granularity = "coordinate",
        module: nn.Module | None = None,
        gates: Gates = "hard_concrete",
        budget: Budget = "projection",
        dual_learning_rate: float = 0.05,
        ramp: float = 0.5,
        init: float = 0.5,
        delta_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 0:
            raise ValueError(f"num_experts is {num_experts}; expected 0 or more")
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity (tau) is {sparsity}; expected 0 <= tau < 1, the closed share of every expert")
        if not 0.0 <= ramp <= 1.0:
            raise ValueError(f"ramp is {ramp}; expected 0 <= ramp <= 1, the share of training until full sparsity")
        for name, value, known in (("gates", gates, Gates), ("budget", budget, Budget)):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}; expected one of {get_args(known)}")
        if gates == "top_k" and budget == "primal_dual":
            raise ValueError("top_k gates are within the budget by selection; expected budget='projection' with them")
        self.sparsity, self.ramp, self.dim = sparsity, ramp, space.dim
        self.gates, self.enforcement, self.dual_learning_rate = gates, budget, dual_learning_rate
        group, size = gate_groups(space, granularity, module)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("group_size", size, persistent=False)
        delta = torch.randn(space.dim, generator=generator, dtype=torch.float32)  # whatever the default dtype
        noise = torch.randn(num_experts, len(size), generator=generator, dtype=torch.float32)
        self.delta = nn.Parameter(delta * delta_scale)
        self.log_alpha = nn.Parameter(init + 0.1 * noise)
        self.register_buffer("multipliers", torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer("progress", torch.tensor(1.0, dtype=torch.float32))

    def __len__(self) -> int:
        return self.log_alpha.shape[0]

    @property
    def budget(self) -> int:
        """floor((1 - tau) d), the coordinates an expert may open; exact for the decimal tau (0.9 means 9/10)."""
        return math.floor((1 - Fraction(str(self.sparsity))) * self.dim)

    @property
    def current_sparsity(self) -> float:
        r"""The tau of now: :math:`\tau (1 - (1 - \min(1, \mathrm{progress} / \mathrm{ramp}))^3)`.

        Source: Zhu & Gupta 2017, "To prune, or not to prune", eq. 1.
        """
        progress = float(self.progress)
        return self.sparsity * (1 - max(0.0, 1 - progress / self.ramp) ** 3) if self.ramp else self.sparsity

    def set_progress(self, fraction: float) -> None:
        """Say how much of the training is over, in [0, 1]; the next :meth:`after_step` enforces the tau of then.

        Raises:
            ValueError: for a fraction outside [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"progress is {fraction}; expected a fraction of the training, 0 to 1")
        self.progress.fill_(fraction)

    def rows(self, count: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """``(M, d)`` experts as they are trained, or ``(count, M, d)`` independent draws of their masks.

        Hard-concrete gates are sampled anew; top-k gates are the same in every draw.
        """
        shape = self.log_alpha.shape if count is None else (count, *self.log_alpha.shape)
        if self.gates == "top_k":
            gates = self._top_k().expand(shape)
        else:
            uniform = torch.rand(shape, generator=generator, device=self.log_alpha.device, dtype=self.log_alpha.dtype)
            gates = hard_concrete(self.log_alpha, uniform)
        return self._expand(gates) * self.delta

    def masks(self) -> Tensor:
        """``(M, d)`` bool, the deployed masks: the gates of largest log alpha, at most ``budget`` coordinates.

        Hard-concrete experts open about as many coordinates as their gates do in expectation, so that a gate that
        training closed is not opened to fill the budget; top-k experts those with log alpha >= 0. Gates that do not
        fit into what is left of the budget are passed over (:func:`pyro_smat.networks.gates.select_gates`).
        """
        return self._expand(self._select(self.budget))

    def projected_rows(self) -> Tensor:
        """``(M, d)`` experts as they are deployed: binary masks within the budget."""
        return self.masks() * self.delta

    def sparsities(self) -> Tensor:
        """``(M,)`` expected share of closed coordinates, 1 - E|z_m|_0 / d, of the experts as they are trained."""
        if self.gates == "top_k":
            opened = self._select(self._current_budget()).to(self.log_alpha.dtype)
        else:
            opened = open_probability(self.log_alpha)
        return 1.0 - opened @ self.group_size.to(opened.dtype) / self.dim

    def orthogonality(self) -> Tensor:
        r"""Mean squared cosine between the experts' expected rows :math:`E[z_m] \odot \theta_\delta`; a scalar.

        0 when no two experts share a coordinate (or M < 2), 1 when all are the same up to scale. Differentiable.
        """
        pairs = len(self) * (len(self) - 1)
        if not pairs:
            return self.log_alpha.new_zeros(())
        # (E z_m delta) . (E z_n delta) = sum_g E z_mg E z_ng w_g with w_g the energy of delta in group g.
        energy = self.delta.new_zeros(len(self.group_size) + 1).index_add(0, self.group, self.delta.square())[:-1]
        energy = energy / energy.sum().detach().clamp(min=1e-30)
        mean = self._top_k() if self.gates == "top_k" else mean_gate(self.log_alpha)
        gram = (mean * energy) @ mean.T
        scale = gram.diagonal().clamp(min=1e-30).rsqrt()
        cosine = gram * scale * scale.unsqueeze(-1)
        return (cosine.square().sum() - cosine.diagonal().square().sum()) / pairs

    @torch.no_grad()
    def after_backward(self) -> None:
        r"""Edit the gradient of the gates; call between ``loss.backward()`` and clipping.

        It is multiplied by :math:`\sqrt G`: a gate moves the loss by about 1/G, and that would drown in Adam's epsilon
        at G = 10^6. Under "primal_dual", with g_m the gradient of expert m's gates, v_m that of its expected number n_m
        of open coordinates, and the violation :math:`e_m = \log n_m - \log((1 - \tau) d)`,

        .. math:: g_m \leftarrow g_m + \mu_m \frac{\mathrm{rms}(g_m)}{\mathrm{rms}(v_m)} v_m, \qquad
                  \mu_m = \min(10, \max(0, \lambda_m + 4 e_m))

        so the balance of loss and budget depends on neither d, nor the sizes of groups, nor the scale of the loss. An
        expert without a gradient of its own (no episode uses it) takes the rms of all experts. In distributed
        training call it on the reduced gradient.

        Source: the multiplier is the PI controller of Sohrabi et al. 2024, "On PI controllers for updating Lagrange
        multipliers in constrained optimization".
        """
        gradient = self.log_alpha.grad
        if gradient is None or not len(self):
            return
        gradient.mul_(math.sqrt(len(self.group_size)))
        if self.enforcement == "projection":
            return
        probability = open_probability(self.log_alpha)
        direction = probability * (1 - probability) * self.group_size
        size = _rms(gradient)
        size = torch.where(size > 0, size, _rms(gradient.flatten()))
        weight = (self.multipliers + PROPORTIONAL * self._violations()).clamp(0.0, LARGEST_MULTIPLIER)
        scale = weight.unsqueeze(-1) * size / _rms(direction).clamp(min=torch.finfo(size.dtype).tiny)
        gradient.add_(scale * direction)

    @torch.no_grad()
    def after_step(self) -> None:
        r"""Enforce the budget of the current tau; call after every optimizer step.

        "projection" lowers log alpha (:func:`pyro_smat.networks.gates.lowering_shift`); "primal_dual" moves the
        multipliers,
        :math:`\lambda_m \leftarrow \min(10, \max(0, \lambda_m + \eta \min(0.1, \max(-0.1, e_m))))`.
        """
        if self.enforcement == "primal_dual":
            step = self._violations().clamp(-LARGEST_VIOLATION, LARGEST_VIOLATION)
            self.multipliers.add_(self.dual_learning_rate * step).clamp_(0.0, LARGEST_MULTIPLIER)
        elif self.gates == "hard_concrete":
            limit = (1 - self.current_sparsity) * self.dim
            self.log_alpha.add_(lowering_shift(self.log_alpha, self.group_size, limit).unsqueeze(-1))

    def _violations(self) -> Tensor:
        """``(M,)`` log of the expected open coordinates over the current budget; positive above it."""
        return (1 - self.sparsities()).log() - math.log(1 - self.current_sparsity)

    def _current_budget(self) -> int:
        tau = self.current_sparsity
        return self.budget if tau == self.sparsity else math.floor((1 - tau) * self.dim)

    def _select(self, budget: int) -> Tensor:
        opened = self.log_alpha >= 0 if self.gates == "top_k" else open_probability(self.log_alpha)
        wanted = (opened * self.group_size).sum(-1)
        return select_gates(self.log_alpha, self.group_size, wanted, budget)

    def _top_k(self) -> Tensor:
        return straight_through(self.log_alpha, self._select(self._current_budget()))

    def _expand(self, gates: Tensor) -> Tensor:
        """Gates ``(*k, M, G)`` to coordinates ``(*k, M, d)``; coordinates outside every group are closed."""
        padded = torch.cat([gates, gates.new_zeros(*gates.shape[:-1], 1)], dim=-1)
        return padded[..., self.group]


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt()
