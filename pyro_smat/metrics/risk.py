r"""Tail risk of a batch of losses: the exact empirical CVaR, its gradient weights, and the value at risk.

The objective (CVaR_ELBO) and every tail number of an evaluation come from here, so that what is trained is what is
reported. ``rho`` is the tail *fraction* in (0, 1]: rho = 1 is the mean, rho = 0.1 the mean of the worst tenth.

With the losses in descending order :math:`x_{[1]} \ge \dots \ge x_{[n]}` and :math:`m = \lfloor \rho n \rfloor`,

.. math::
    \mathrm{CVaR}_\rho
      = \frac{1}{\rho n}\Big(\sum_{i \le m} x_{[i]} + (\rho n - m)\, x_{[m+1]}\Big)
      = \min_t\; t + \frac{1}{\rho n}\sum_i (x_i - t)_+
      = \max\Big\{\sum_i w_i x_i : 0 \le w_i \le \tfrac{1}{\rho n},\; \sum_i w_i = 1\Big\},

and it is the maximum when :math:`\rho n \le 1` (Rockafellar and Uryasev 2000; 2002, Proposition 8). The maximising w
is the gradient. A detached threshold t with a hinge is *not*: it leaves the boundary item out, which is the whole
gradient when :math:`\rho n < 1`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOLERANCE = 1e-9  # 0.07 * 100 is 7.000000000000001: a product this near to an integer is that integer


def check_rho(rho: float) -> None:
    """Refuse a tail fraction outside (0, 1].

    Raises:
        ValueError: when ``rho`` is not in (0, 1].
    """
    if not 0 < rho <= 1:
        raise ValueError(
            f"rho is {rho!r}; expected a tail fraction in (0, 1]: rho = 1 is the mean, rho = 0.1 the worst tenth "
            "(a confidence level such as BoTorch's alpha is 1 - rho)"
        )


def cvar(losses: Tensor, rho: float, dim: int = -1) -> Tensor:
    r"""Mean of the worst ``rho`` fraction of the losses, exact also where :math:`\rho n` is no integer.

    The gradient with respect to ``losses`` is :func:`cvar_weights`. NaN in gives NaN out.

    Args:
        losses: ``(*b, n)`` floating point, with n at ``dim``.
        rho: tail fraction in (0, 1].
        dim: the dimension that holds the n losses.

    Returns:
        ``(*b)``, in the dtype of ``losses``.

    Raises:
        ValueError: when ``rho`` is outside (0, 1], or ``losses`` is empty along ``dim`` or not floating point.

    Example:
        >>> cvar(torch.tensor([1.0, 4.0, 2.0, 3.0]), rho=0.5)
        tensor(3.5000)
        >>> cvar(torch.tensor([1.0, 4.0, 2.0, 3.0]), rho=0.375)  # 1.5 items: (4 + 3 / 2) / 1.5
        tensor(3.6667)
    """
    shares, tail, _ = _tail_shares(losses, rho, dim)
    return (shares * losses).sum(dim) / tail


def cvar_weights(losses: Tensor, rho: float, dim: int = -1) -> Tensor:
    r"""The weights w of the worst ``rho`` fraction: :math:`\mathrm{CVaR}_\rho = \sum_i w_i x_i`, detached.

    Losses above the threshold :math:`t = x_{[\lceil \rho n \rceil]}` get :math:`1 / (\rho n)`; what is left of the
    total of 1 is shared equally among the losses that tie at t.

    Args:
        losses: ``(*b, n)`` floating point, with n at ``dim``.
        rho: tail fraction in (0, 1].
        dim: the dimension that holds the n losses.

    Returns:
        The shape and dtype of ``losses``; 0 <= w <= 1 / (rho n), sum 1 along ``dim``, no gradient.

    Raises:
        ValueError: as in :func:`cvar`.

    Example:
        >>> cvar_weights(torch.tensor([1.0, 4.0, 2.0, 4.0]), rho=0.25)
        tensor([0.0000, 0.5000, 0.0000, 0.5000])
    """
    return tail_weights(losses, rho, dim)[0]


def tail_weights(losses: Tensor, rho: float, dim: int = -1) -> tuple[Tensor, Tensor]:
    """:func:`cvar_weights` and :func:`value_at_risk` from one sort; arguments and errors as there."""
    shares, tail, threshold = _tail_shares(losses, rho, dim)
    return shares / tail, threshold.squeeze(dim)


def value_at_risk(losses: Tensor, rho: float, dim: int = -1) -> Tensor:
    r"""The (1 - rho)-quantile :math:`x_{[\lceil \rho n \rceil]}`: always one of the losses, never an interpolation.

    It minimises the Rockafellar-Uryasev objective. When :math:`\rho n = m` is an integer every point of
    :math:`[x_{[m+1]}, x_{[m]}]` does, and this is the upper end.

    Args:
        losses: ``(*b, n)`` floating point, with n at ``dim``.
        rho: tail fraction in (0, 1].
        dim: the dimension that holds the n losses.

    Returns:
        ``(*b)``, in the dtype of ``losses``.

    Raises:
        ValueError: as in :func:`cvar`.

    Example:
        >>> value_at_risk(torch.tensor([1.0, 4.0, 2.0, 3.0]), rho=0.3)
        tensor(3.)
    """
    return losses.topk(math.ceil(_tail_size(losses, rho, dim)), dim, sorted=False).values.amin(dim)


def _tail_size(losses: Tensor, rho: float, dim: int) -> float:
    """rho n, at least 1 (CVaR is the maximum from there down) and snapped to an integer within the tolerance."""
    check_rho(rho)
    if not losses.is_floating_point():
        raise ValueError(f"losses are {losses.dtype}; expected floating point")
    if losses.ndim == 0 or losses.shape[dim] == 0:
        raise ValueError(f"losses have shape {tuple(losses.shape)}; expected at least one loss along dim {dim}")
    tail = rho * losses.shape[dim]
    nearest = round(tail)
    return max(1.0, float(nearest) if abs(tail - nearest) <= _TOLERANCE else tail)


@torch.no_grad()
def _tail_shares(losses: Tensor, rho: float, dim: int) -> tuple[Tensor, float, Tensor]:
    """How much of each loss is in the tail, in [0, 1] like ``losses``; what the shares sum to; the threshold."""
    tail = _tail_size(losses, rho, dim)
    threshold = value_at_risk(losses, rho, dim).unsqueeze(dim)
    above, tied = losses > threshold, losses == threshold
    # Counts in float32 at least: half precision cannot hold integers above 2048 (bfloat16: 256).
    dtype = torch.promote_types(losses.dtype, torch.float32)
    boundary = (tail - above.sum(dim, keepdim=True).to(dtype)) / tied.sum(dim, keepdim=True)
    return torch.where(tied, boundary, above.to(dtype)).to(losses.dtype), tail, threshold
