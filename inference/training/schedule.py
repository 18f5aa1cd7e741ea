"""Learning rates: a linear warm-up, then a cosine to zero."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def warmup_then_cosine(optimizer: Optimizer, warmup: int, steps: int) -> LRScheduler:
    r"""The schedule of ``steps`` steps; step it after every step of the optimizer.

    .. math:: \frac{s + 1}{w} \;\text{for}\; s < w, \qquad
              \tfrac12 \Big(1 + \cos \pi \frac{s - w}{\max(1,\, n - w)}\Big) \;\text{after}

    Args:
        optimizer: its rates of now are the whole rates.
        warmup: w, steps; 0 starts with the whole rates.
        steps: n.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule, rates = warmup_then_cosine(optimizer, 2, 6), []
        >>> for _ in range(6):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if not warmup:
        return CosineAnnealingLR(optimizer, T_max=max(1, steps))
    growth = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [growth, CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))], [warmup])
