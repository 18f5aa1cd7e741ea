"""What a routing function is given and may return: a router, a call of it, and experts that the function chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from pyro_smat.moe.contracts import Contract, Scoring
from pyro_smat.moe.weighting import Weighting

ENTRY = "_router"  # of an attached module's __dict__: no parameter, buffer or child, so not in the state dict


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
    """

    router: Router
    hidden: Tensor
    logits: Tensor
    logits_of: Callable[[Tensor], Tensor]
    weighting: Callable[[], Weighting]
    scoring: Scoring


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
