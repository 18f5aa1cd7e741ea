"""What an attached router runs while a routing function is active: its own logits -> the function -> its own rule.

Of two kinds, as its contract says: logits that a child or a method returns are exchanged there; a gate matrix inside
the router becomes the identity, so that the router's rule is applied to the logits of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.moe.calls import ENTRY, Chosen, Memory, Router, RouterCall, RoutingFunction, checked
from pyro_smat.moe.contracts import Contract, Scoring, UnknownRouter
from pyro_smat.moe.weighting import Weighting, weighting_of


def forward_logits(
    module: nn.Module,
    original: Callable,
    function: RoutingFunction,
    memory: Memory,
    hidden: Tensor,
    args: tuple,
    kwargs: Mapping,
) -> Tensor:
    router: Router = vars(module)[ENTRY]

    def own(states: Tensor) -> Tensor:
        return original(module, states, *args, **kwargs)

    def weighting() -> Weighting:
        raise NotImplementedError(
            f"router {router.name!r} ({router.contract.kind} contract) weighs its experts where it cannot be seen"
        )

    logits = own(hidden)
    call = _call(router, hidden, logits, own, weighting, router.contract.scoring, memory)
    result = _in_full_precision(function, call)
    if isinstance(result, Chosen):
        if not router.contract.renormalises or result.factor is not None:
            raise NotImplementedError(
                f"router {router.name!r} ({type(module).__mro__[1].__name__}) makes weights of its own from all "
                "logits; experts can be chosen for it only by its own rule: return logits"
            )
        result = _only(result)
    return result.to(logits.dtype)


def _only(chosen: Chosen) -> Tensor:
    """Logits of which the chosen are by far the largest; finite, since an identity gate multiplies them by zero."""
    kept = torch.zeros_like(chosen.logits, dtype=torch.bool).scatter(-1, chosen.index, True)
    return chosen.logits.masked_fill(~kept, torch.finfo(torch.bfloat16).min / 4)


def forward_identity(
    module: nn.Module,
    original: Callable,
    function: RoutingFunction,
    memory: Memory,
    hidden: Tensor,
    args: tuple,
    kwargs: Mapping,
) -> tuple:
    router: Router = vars(module)[ENTRY]
    contract = router.contract
    quiet = _view(module, contract, None)
    reference = original(quiet, hidden, *args, **kwargs)
    logits = reference[contract.logits_index]
    if not isinstance(logits, Tensor) or logits.shape[-1] != router.num_experts:
        raise UnknownRouter(f"router {router.name!r}: output {contract.logits_index} is not its logits (..., E)")

    def own(states: Tensor) -> Tensor:
        return original(quiet, states, *args, **kwargs)[contract.logits_index]

    def rule(values: Tensor) -> tuple:
        flat = values.reshape(-1, values.shape[-1])
        with _no_autocast(values.device.type):  # or the identity would round the logits to half precision
            outputs = original(_view(module, contract, values.dtype), flat, *args, **kwargs)
        return tuple(o.unflatten(0, values.shape[:-1]) if values.dim() > 2 else o for o in outputs)

    def weighting() -> Weighting:
        cached = vars(module).get("_weighting")
        if cached is None:
            if contract.logits_index != 0:
                cached = Weighting("sigmoid", False, 1.0)
            else:
                cached = weighting_of(rule, router.num_experts, logits.device, router.name)
            vars(module)["_weighting"] = cached
        return cached

    call = _call(router, hidden, logits, own, weighting, _scoring(contract, weighting), memory)
    result = _in_full_precision(function, call)
    outputs = _weigh(result, call, contract, rule) if isinstance(result, Chosen) else rule(result)
    return tuple(o.to(r.dtype) if isinstance(o, Tensor) else o for o, r in zip(outputs, reference, strict=True))


def _call(
    router: Router,
    hidden: Tensor,
    logits: Tensor,
    own: Callable[[Tensor], Tensor],
    weighting: Callable[[], Weighting],
    scoring: Scoring,
    memory: Memory,
) -> RouterCall:
    """A call with hidden states in the leading shape of the logits, whichever shape the router was given them in."""
    given, leading = hidden.shape, logits.shape[:-1]
    if given[:-1].numel() != leading.numel():
        raise UnknownRouter(
            f"router {router.name!r} was given hidden states {tuple(given)} and made logits {tuple(logits.shape)}; "
            f"expected logits for every token. Leave it out with leave=({router.name!r},)"
        )

    @_under_present_autocast(hidden.device.type)
    def logits_of(states: Tensor) -> Tensor:
        tokens = states.shape[:-1]
        return _float(own(states.reshape(given) if tokens == leading else states)).reshape(*tokens, -1)

    return RouterCall(
        router, hidden.reshape(*leading, given[-1]), _float(logits), logits_of, weighting, scoring, memory
    )


def _scoring(contract: Contract, weighting: Callable[[], Weighting]) -> Scoring:
    if contract.scoring == "sigmoid":
        return "sigmoid"
    try:
        return "sigmoid" if weighting().score == "sigmoid" else "softmax"
    except NotImplementedError:
        return "softmax"


def _weigh(chosen: Chosen, call: RouterCall, contract: Contract, rule: Callable[[Tensor], tuple]) -> tuple:
    if contract.logits_index != 0:  # scores of all experts, 0 for those not chosen: its own rule obeys a mask
        scores, logits = rule(_only(chosen))
        if chosen.factor is not None:
            scores = scores * torch.ones_like(scores).scatter(-1, chosen.index, chosen.factor)
        return scores, logits
    weights = call.weighting()(chosen.logits, chosen.index)
    if chosen.factor is not None:
        weights = weights * chosen.factor
    return chosen.logits, weights, chosen.index


def _view(module: nn.Module, contract: Contract, dtype: torch.dtype | None) -> nn.Module:
    """A router that shares everything with ``module`` but hooks, mode and, with a dtype, the gate: the identity there.

    Built for every call, so that it follows device, buffers and loaded states without being told.
    """
    base: Any = type(module).__mro__[1]
    view = base.__new__(base)
    state = dict(vars(module))
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        state[hooks] = type(state[hooks])()
    state["_parameters"] = dict(state["_parameters"])
    state["_modules"] = dict(state["_modules"])
    state["training"] = False  # its own jitter is off: the noise is ours
    view.__dict__ = state
    if dtype is None:
        return view
    holder: Any = module if contract.gate == "weight" else module.get_submodule(contract.gate)
    eye = torch.eye(contract.num_experts, dtype=dtype, device=holder.weight.device)
    if contract.gate == "weight":
        state["_parameters"]["weight"] = nn.Parameter(eye, requires_grad=False)
        if state["_parameters"].get("bias") is not None:
            zero = torch.zeros(contract.num_experts, dtype=dtype, device=eye.device)
            state["_parameters"]["bias"] = nn.Parameter(zero, requires_grad=False)
    else:
        linear = nn.Linear(contract.num_experts, contract.num_experts, bias=False, device="meta")
        linear.weight = nn.Parameter(eye, requires_grad=False)
        state["_modules"][contract.gate] = linear
    for attribute, value in {"hidden_dim": contract.num_experts, **_NEUTRAL, **contract.overrides}.items():
        if attribute in state:
            state[attribute] = value
    return view


# What a router does to its logits after the gate has been done already when they come back through the identity.
_NEUTRAL: Mapping[str, Any] = {"router_logit_softcapping": 0.0, "input_jitter_noise": 0.0}


def _in_full_precision(function: RoutingFunction, call: RouterCall) -> Tensor | Chosen:
    """Call a routing function without autocast, which would multiply covariances in half precision."""
    with _no_autocast(call.hidden.device.type):
        return checked(function(call), call)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _under_present_autocast(device: str) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    """Let a function of the network's own run as the network does now, also when it is called without autocast."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return lambda function: function
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device))


def _float(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
