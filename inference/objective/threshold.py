r"""Thresholds of the tail: how a batch of B losses knows which of them are in the worst rho of *all* episodes.

.. math:: \mathrm{CVaR}_\rho = \min_t\; t + \tfrac1\rho\, E[(X - t)_+]        (Rockafellar and Uryasev 2000)

"batch" takes t from the batch itself: exact for the batch, biased low for the population when rho B is small. "queue"
takes it from the recent losses, "learned" follows the gradient in t: both give a batch of any size, even of one
episode, a tail that is right on average. A threshold turns losses into a :class:`Tail`; the CVaR_ELBO calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_smat.metrics.risk import cvar, tail_weights


@dataclass(frozen=True)
class Tail:
    """What is in the tail.

    Attributes:
        weights: ``(B,)`` >= 0, detached: the gradient of the tail loss by the episode losses. They sum to 1 with
            "batch", and to 1 on average over the batches of a stream otherwise.
        threshold: t.
        at: the tail loss of other losses, ``(*b, B) -> (*b)``: what it would have been, had these been drawn.
    """

    weights: Tensor
    threshold: Tensor
    at: Callable[[Tensor], Tensor]

    def loss(self, losses: Tensor) -> Tensor:
        r""":math:`t + \frac{1}{\rho B}\sum_i (x_i - t)_+ = \sum_i w_i x_i + t\,(1 - \sum_i w_i)`."""
        inside = (self.weights * losses).masked_fill((self.weights == 0) & losses.isinf(), 0.0)  # 0 times infinity is 0
        rest = 1.0 - self.weights.sum()
        return inside.sum() + (self.threshold * rest).masked_fill(self.threshold.isinf(), 0.0)


class Threshold(Protocol):
    """Finds the tail of a batch of losses ``(B,)``, detached; ``update`` says whether the state moves on."""

    def __call__(self, losses: Tensor, rho: float, update: bool = True) -> Tail: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def above(threshold: Tensor, rho: float) -> Callable[[Tensor], Tensor]:
    r""":math:`x \mapsto t + \frac{1}{\rho B}\sum_i (x_i - t)_+` with a t that stands; at rho = 1 the mean."""
    if rho == 1.0:
        return lambda losses: losses.mean(-1)
    return lambda losses: threshold + (losses - threshold).clamp(min=0).mean(-1) / rho


class BatchThreshold:
    """The exact fractional tail of the batch itself; no state."""

    def __call__(self, losses: Tensor, rho: float, update: bool = True) -> Tail:
        if rho == 1.0:  # without the sorting
            threshold = losses.amin()
            return Tail(torch.full_like(losses, 1 / len(losses)), threshold, above(threshold, rho))
        return Tail(*tail_weights(losses, rho), partial(cvar, rho=rho))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class QueueThreshold:
    """The quantile of the last ``size`` losses, this batch among them.

    The tail weights are the exact fractional weights of the whole queue, times queue length / B.

    Args:
        size: losses to remember, >= 1.
    """

    def __init__(self, size: int = 256) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected a queue of at least one loss")
        self.size = size
        self.recent = torch.empty(0)

    def __call__(self, losses: Tensor, rho: float, update: bool = True) -> Tail:
        recent = torch.cat([self.recent.to(losses), losses])[-max(self.size, len(losses)) :]
        if update:  # one infinite loss must not be the threshold of the batches that follow
            self.recent = recent[recent.isfinite()]
        share = len(recent) / len(losses)
        weights, threshold = tail_weights(recent, rho)
        return Tail(weights[-len(losses) :] * share, threshold, above(threshold, rho))

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self.recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.recent = state["recent"]


class LearnedThreshold:
    r"""t as a variable of its own, moved by its gradient :math:`1 - \frac{1}{\rho B}\#\{x_i \ge t\}` after every batch.

    t starts as the quantile of the first ``warmup`` losses. While it is within one step of the recent ones it moves
    freely, so that steps up and down, and with them the weights, balance: a tail weight that is 1 on average. Losses
    that fall and leave it behind take it along: above all losses it would switch the gradient off.

    Args:
        learning_rate: > 0, in standard deviations of the recent losses.
        warmup: losses before t moves by itself; None takes 10 / rho of them.
        window: losses to remember.
    """

    def __init__(self, learning_rate: float = 0.05, warmup: int | None = None, window: int = 256) -> None:
        if not learning_rate > 0 or window < 1:
            raise ValueError(f"learning_rate is {learning_rate} and window {window}; expected > 0 and >= 1")
        self.learning_rate, self.warmup = learning_rate, warmup
        self.queue = QueueThreshold(window)
        self.value: Tensor | None = None
        self.seen = 0

    def __call__(self, losses: Tensor, rho: float, update: bool = True) -> Tail:
        start = self.queue(losses, rho, update)
        warmup = math.ceil(10 / rho) if self.warmup is None else self.warmup
        value = start.threshold
        if rho < 1.0 and self.value is not None and self.seen >= warmup:
            value = self.value.to(losses)
        # At rho = 1 every episode is in the tail: t is below all losses.
        inside = torch.ones_like(losses) if rho == 1.0 else (losses >= value).to(losses.dtype)
        tail = Tail(inside / (rho * len(losses)), value, above(value, rho))
        if update:
            self._move(value, 1.0 - tail.weights.sum(), rho)
            self.seen += len(losses)
        return tail

    def _move(self, value: Tensor, slope: Tensor, rho: float) -> None:
        recent = self.queue.recent
        if len(recent):
            step = self.learning_rate * recent.std(correction=0)
            low, high = recent.min() - step, recent.max() + step * (1 / rho - 1)  # the longest steps from among them
            self.value = (value - step * slope).clamp(low, high).detach()

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue.state_dict(), "value": self.value, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue.load_state_dict(state["queue"])
        self.value, self.seen = state["value"], state["seen"]


THRESHOLDS: dict[str, Callable[[], Threshold]] = {
    "batch": BatchThreshold,
    "queue": QueueThreshold,
    "learned": LearnedThreshold,
}
