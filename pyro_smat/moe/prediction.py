r"""Predictions of an attached network under a way of routing, and what of their uncertainty is routing.

:func:`predict` is one pass; :func:`trajectories` S passes, each with routing drawn throughout the network, whose
probabilities are averaged:

.. math:: H\Big[\tfrac1S \sum_s p_s\Big] = \underbrace{\tfrac1S \sum_s H[p_s]}_{\text{aleatoric}}
          + \underbrace{I(y; \text{routing})}_{\text{mutual information}}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_smat.moe.calls import RoutingFunction
from pyro_smat.moe.surgery import Attachment


@dataclass(frozen=True)
class Prediction:
    """A predictive distribution taken apart; entropies in nats.

    Attributes:
        probabilities: ``(..., C)``, the mixture.
        total: ``(...)`` entropy of the mixture.
        aleatoric: ``(...)`` mean entropy of the components.
        components: ``(S, ..., C)``.
    """

    probabilities: Tensor
    total: Tensor
    aleatoric: Tensor
    components: Tensor

    @property
    def mutual_information(self) -> Tensor:
        """Of the answer and the routing ``(...)``; never negative but for rounding."""
        return self.total - self.aleatoric


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats ``(...)`` of ``(..., C)``; 0 log 0 is 0."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def mixture(components: Tensor) -> Prediction:
    """The prediction of equally likely components ``(S, ..., C)``."""
    mean = components.mean(0)
    return Prediction(mean, entropy(mean), entropy(components).mean(0), components)


@torch.no_grad()
def predict(attachment: Attachment, function: RoutingFunction | None, logits: Callable[[], Tensor]) -> Prediction:
    """One pass.

    Args:
        attachment: of the network.
        function: how it is routed, see ``modes``; None for its own way.
        logits: runs the network and returns the logits of the answers ``(..., C)``.

    Example:
        >>> predict(attachment, mean_routing(guide), lambda: model(**batch).logits[:, -1, options])
        ...                                                                         # doctest: +SKIP
    """
    with attachment.routing(function):
        return mixture(logits().float().softmax(-1).unsqueeze(0))


@torch.no_grad()
def trajectories(
    attachment: Attachment, functions: Sequence[RoutingFunction | None], logits: Callable[[], Tensor]
) -> Prediction:
    """One pass for each of S routing functions, averaged as probabilities.

    Args:
        attachment: of the network.
        functions: S of them, e.g. ``[sampled_routing(guide, seed) for seed in range(20)]``, or the members of an
            ensemble of routers.
        logits: as in :func:`predict`.

    Raises:
        ValueError: when there are none, or one twice: each draws from its seed anew, so it would only count double.
    """
    check_functions(functions)
    components = []
    for function in functions:
        with attachment.routing(function):
            components.append(logits().float().softmax(-1))
    return mixture(torch.stack(components))


def check_functions(functions: Sequence[RoutingFunction | None]) -> None:
    """Raise ValueError where there are none, or one twice."""
    if not functions:
        raise ValueError("no routing functions; expected at least one (None for the network's own routing)")
    first: dict[int, int] = {}
    for i, function in enumerate(functions):
        if (j := first.setdefault(id(function), i)) != i and function is not None:
            raise ValueError(
                f"function {i} is function {j} again, and would draw the same; expected functions with seeds of their "
                "own, e.g. [sampled_routing(guide, seed) for seed in range(20)]"
            )
