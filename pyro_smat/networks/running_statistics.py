"""Normalisation by running statistics that has a gradient in them, for networks whose statistics are mixed."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn


class EvaluationBatchNorm(nn.Module):
    """Batch or instance normalisation by running statistics, differentiable in them (PyTorch's own is not).

    Running statistics are mixed like weights, so the gradient of the coefficients flows through them too.
    """

    def __init__(self, module: nn.modules.batchnorm._NormBase) -> None:
        super().__init__()
        self.eps = module.eps
        self._parameters, self._buffers = module._parameters, module._buffers

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, ...)`` to the same shape."""
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        assert mean is not None
        assert variance is not None
        return normalised(x, mean, variance, self._parameters["weight"], self._parameters["bias"], self.eps)


def normalised(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    r""":math:`(x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot w + b` for every channel, differentiable in all of them.

    Args:
        x: ``(n, c, ...)``.
        mean: ``(c,)``, as are all that follow.
        variance: at least 0.
        weight: None for 1.
        bias: None for 0.
        eps: added to the variance.
    """
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    channels = (-1,) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(channels), x, scale.view(channels))


_REPLACEABLE = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)


def tracks_statistics(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._NormBase]:
    """Whether a module normalises by running statistics."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def normalises_by_batch(module: nn.Module) -> bool:
    """Whether a module normalises by the statistics of the batch even in evaluation mode."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def with_differentiable_statistics(module: nn.Module) -> nn.Module:
    """``module`` with its normalisations replaced (in place), but for subclasses with a forward of their own."""
    if tracks_statistics(module) and type(module).forward in _REPLACEABLE:
        return EvaluationBatchNorm(module)  # not a subclass that does more (an activation inside, say)
    for name, child in module.named_children():
        setattr(module, name, with_differentiable_statistics(child))
    return module
