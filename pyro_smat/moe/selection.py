r"""Choosing k of E experts at random, without replacement, and what gradient there is.

Gumbel-top-k: the k largest of :math:`l_e + g_e` with independent standard Gumbel g are a sample without replacement of
:math:`\mathrm{softmax}(l)`, in order (Kool, van Hoof and Welling 2019); their density is that of Plackett and Luce,

.. math:: p(i_1, \dots, i_k) = \prod_{j=1}^k \frac{\exp l_{i_j}}{\sum_e \exp l_e - \sum_{m<j} \exp l_{i_m}}.

The choice itself has no pathwise gradient: weights computed from the logits carry theirs, ``straight_through_factor``
adds a biased one for the choice, and :class:`PlackettLuce` as a Pyro site an unbiased one (score function).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

__all__ = ["PlackettLuce", "sample_without_replacement", "straight_through_factor"]


def sample_without_replacement(logits: Tensor, k: int, *, generator: torch.Generator | None = None) -> Tensor:
    """k distinct indices ``(..., k)``, in the order in which they were drawn.

    Args:
        logits: ``(..., E)``.
        k: at most E.
        generator: of the draws; None is torch's own.

    Raises:
        ValueError: when k is not in 1..E.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k is {k}; expected 1 to {logits.shape[-1]} experts")
    with torch.no_grad():
        noise = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        noise.exponential_(generator=generator)  # minus the logarithm of an exponential is a standard Gumbel
        return (logits - noise.log()).topk(k, -1).indices


def straight_through_factor(logits: Tensor, index: Tensor) -> Tensor:
    """Ones ``(..., k)`` whose gradient is that of softmax(logits) at ``index``: the choice counts as its probability.

    Args:
        logits: ``(..., E)``.
        index: ``(..., k)``.
    """
    probability = logits.softmax(-1).gather(-1, index)
    return 1 + probability - probability.detach()


class PlackettLuce(TorchDistribution):
    """Ordered draws of k of E without replacement; a Pyro distribution with a score function, no pathwise gradient.

    Args:
        logits: ``(..., E)``.
        k: how many.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, logits: Tensor, k: int) -> None:
        self.logits, self.k = logits, k
        super().__init__(logits.shape[:-1], torch.Size([k]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> PlackettLuce:
        return PlackettLuce(self.logits.expand(*batch_shape, self.logits.shape[-1]), self.k)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return sample_without_replacement(self.logits.expand(*sample_shape, *self.logits.shape), self.k)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of ordered draws ``(..., k)``."""
        log_p = self.logits.log_softmax(-1)
        chosen = log_p.expand(*value.shape[:-1], log_p.shape[-1]).gather(-1, value)
        left = torch.zeros_like(log_p).expand(*value.shape[:-1], log_p.shape[-1]).clone()
        total = chosen[..., 0]
        for j in range(1, self.k):
            left = left.scatter(-1, value[..., j - 1 : j], float("-inf"))
            total = total + chosen[..., j] - (log_p + left).logsumexp(-1)
        return total


@register_kl(PlackettLuce, PlackettLuce)
def _kl_plackett_luce(p: PlackettLuce, q: PlackettLuce) -> Tensor:
    if p.k != q.k or not torch.equal(p.logits, q.logits):
        raise NotImplementedError  # how torch says that there is no closed form
    return p.logits.new_zeros(p.batch_shape)
