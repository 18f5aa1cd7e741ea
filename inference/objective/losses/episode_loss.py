"""EpisodeLoss: what of an observation counts, point by point; and how an objective makes losses of episodes of it.

A loss knows a distribution, labels and a mask, and nothing of plates: :func:`points_of` weighs, masks and averages its
points, for the :class:`~pyro_smat.inference.CVaR_ELBO` as for the reference of regret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pyro.distributions.util import is_identically_one, scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_smat.registry import Choice, build, choose

Reduction = Literal["sum", "mean"]
NO_PLATES: tuple[int, ...] = ()


@runtime_checkable
class EpisodeLoss(Protocol):
    """The points of an observation: called with (distribution, labels, mask).

    The distribution has batch shape ``(*b)``, labels are ``(*b, *event)``, the mask is bool, broadcastable to ``(*b)``
    and True where a point is real. The result is ``(*b)``; values at masked points do not count.

    Points are summed over an episode. An attribute ``reduction = "mean"`` has them divided by their number, so that
    the loss does not depend on how many queries an episode has. An :class:`OfExpectation` is taken of their posterior
    expectation instead of being averaged over the posterior itself.
    """

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor: ...


@runtime_checkable
class OfExpectation(Protocol):
    """A loss that is a function of the posterior expectation of its points, not their average."""

    def __call__(self, distribution: Distribution, labels: Tensor, mask: Tensor) -> Tensor: ...

    def of_expectation(self, points: Tensor) -> Tensor:
        """The loss of every point ``(*b)``, from the expectation of its points ``(*b)``."""
        ...


def as_episode_loss(loss: str | Mapping[str, Any] | Choice | EpisodeLoss) -> EpisodeLoss:
    """The loss that a name, a table of a config or a choice means; a loss of one's own stays what it is.

    Raises:
        ValueError: for an unknown name or option.

    Example:
        >>> as_episode_loss({"kind": "clipped_nll", "clip": 3.0}).clip
        3.0
    """
    if isinstance(loss, str | Mapping):
        loss = choose("episode_loss", loss)
    return build(loss) if isinstance(loss, Choice) else loss


def reduction_of(loss: EpisodeLoss) -> Reduction:
    """How the points of an episode are put together: "sum", unless the loss says "mean"."""
    return getattr(loss, "reduction", "sum")


def points_of(
    loss: EpisodeLoss,
    distribution: Distribution,
    labels: Tensor,
    mask: Tensor | bool | None = None,
    *,
    inner: tuple[int, ...] = NO_PLATES,
    scale: Tensor | float = 1.0,
    expectation: Callable[[Tensor], Tensor] = lambda points: points,
) -> Tensor:
    """What every point adds to the loss of its episode: their sum over the dims ``inner`` is that loss.

    Args:
        loss: of every point.
        distribution: of batch shape ``(*b)``.
        labels: ``(*b, *event)``.
        mask: bool, broadcastable to ``(*b)``; None and True are all points.
        inner: dims of the points of one episode, negative; none where an episode is one point.
        scale: factor of the points, as of ``poutine.scale``.
        expectation: over the posterior, ``(*b) -> (*b)`` with size 1 where it was averaged.

    Returns:
        ``(*b)``; 0 at masked points.
    """
    shown = torch.ones((), dtype=torch.bool, device=labels.device) if mask is None else torch.as_tensor(mask).bool()
    points = loss(distribution, labels, shown)
    if isinstance(loss, OfExpectation):
        return _weighed(loss.of_expectation(expectation(points)), shown, inner, scale, reduction_of(loss))
    return expectation(_weighed(points, shown, inner, scale, reduction_of(loss)))


def _weighed(
    points: Tensor, mask: Tensor, inner: tuple[int, ...], scale: Tensor | float, reduction: Reduction
) -> Tensor:
    """Points scaled, masked, and divided by their number where they are averaged."""
    if reduction == "sum":
        return scale_and_mask(points, scale=scale, mask=mask)
    shown = mask.to(points).expand(torch.broadcast_shapes(mask.shape, points.shape))
    count = shown.sum(inner, keepdim=True) if inner else shown  # a sum over no dims would be one over all
    points = points if is_identically_one(scale) else points * scale
    return points.masked_fill(shown == 0, 0.0) / count.clamp(min=1)
