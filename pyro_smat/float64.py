"""Numbers in float64, wherever they are: Apple's GPUs have none, so what is on one goes to the CPU for it."""

from __future__ import annotations

from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)


def in_float64(x: Tensor) -> Tensor:
    """``x`` in float64, with its gradient: on its own device, or on the CPU where that device has no float64.

    Bring the result of what is computed with it back by ``result.to(x)``.

    Example:
        >>> import torch
        >>> in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float64
    """
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()
