"""What a routing function is given and may return: a router, a call of it, and experts that the function chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_smat.moe.contracts import Contract, Scoring
from pyro_smat.moe.weighting import Weighting

ENTRY = "_router"  # of an attached module's __dict__: no parameter, buffer or child, so not in the state dict

Memory = dict[object, Any]


@dataclass(frozen=True)
class Router:
    """A router of experts that is, or can be, attached.

    Attributes:
        name: path in the network.
        index: 0 for the first router of the network, in the order of ``named_modules``.
        num_experts: E.
        top_k: how many experts a token gets; None where only the surrounding block knows.
        hidden_size: H; None where it cannot be read off.
        contract: where the logits are.
        key: of the attachment.
    """

    name: str
    index: int
    num_experts: int
    top_k: int | None
    hidden_size: int | None
    contract: Contract
    key: object = field(repr=False, compare=False, default=None)


@dataclass(frozen=True)
class RouterCall:
    """One call of a router, as a routing function sees it.

    Attributes:
        router: which.
        hidden: ``(..., H)`` what the router was given, in the leading shape of the logits, also where it was given
            another (DeepSeek's flatten ``(B, L, H)`` themselves).
        logits: ``(..., E)`` its own logits, in float32 (float64 if they are).
        logits_of: ``(..., H) -> (..., E)``: the logits of other hidden states, for noise and dropout.
        weighting: how chosen experts are weighed; a function, since it costs one more call of the rule.
        scoring: what the scores of experts are made with.
        memory: empty when a run starts (``attachment.routing`` is opened), and the same for all calls of that run: what
            a routing function keeps from router to router and from token to token belongs here, not in the function.
    """

    router: Router
    hidden: Tensor
    logits: Tensor
    logits_of: Callable[[Tensor], Tensor]
    weighting: Callable[[], Weighting]
    scoring: Scoring
    memory: Memory = field(default_factory=dict)

    def generator(self, key: object, seed: torch.Generator | int) -> torch.Generator:
        """The generator of this run: every run starts from the seed anew and goes on from call to call.

        Args:
            key: whose it is, e.g. the routing function.
            seed: a seed; a generator is the caller's own, and is returned as it is.
        """
        if isinstance(seed, torch.Generator):
            return seed
        device = self.logits.device
        found: torch.Generator | None = self.memory.get((key, device))
        if found is None:
            found = self.memory[key, device] = torch.Generator(device=device).manual_seed(seed)
        return found


@dataclass(frozen=True)
class Chosen:
    """Experts that a routing function has chosen itself, instead of leaving it to the router's rule.

    Attributes:
        logits: ``(..., E)`` from which the weights of the chosen are made (and the auxiliary loss, if any).
        index: ``(..., k)`` the experts, distinct.
        factor: ``(..., k)`` multiplies the weights: ones with a gradient (straight-through), or None.
    """

    logits: Tensor
    index: Tensor
    factor: Tensor | None = None


RoutingFunction = Callable[[RouterCall], "Tensor | Chosen"]


def checked(result: object, call: RouterCall) -> Tensor | Chosen:
    """What a routing function returned for a call.

    Raises:
        TypeError: when it is neither logits nor :class:`Chosen`.
        ValueError: when its shapes are not those of the call.
    """
    expected = f"logits {tuple(call.logits.shape)}, or Chosen with such logits and an index (..., k) of integers"
    if not isinstance(result, Tensor | Chosen):
        raise TypeError(
            f"the routing function returned {type(result).__name__} for router {call.router.name!r}; expected "
            f"{expected} (is a `return` missing?)"
        )
    logits, index = (result.logits, result.index) if isinstance(result, Chosen) else (result, None)
    if logits.shape != call.logits.shape:
        raise ValueError(
            f"the routing function returned shape {tuple(logits.shape)} for router {call.router.name!r}; expected "
            f"{expected}"
        )
    if index is not None and (index.is_floating_point() or index.shape[:-1] != logits.shape[:-1]):
        raise ValueError(
            f"the routing function chose experts {tuple(index.shape)} {index.dtype} for router {call.router.name!r}; "
            f"expected {expected}"
        )
    return result
