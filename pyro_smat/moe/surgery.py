"""Surgery on routers: a network's own routers, with logits that a function may replace while a context is open.

    network -> find_routers -> attach -> `with attachment.routing(function): network(...)` -> detach

Nothing is wrapped and nothing is hooked: the *class* of a router (or of the child that makes its logits) becomes a
subclass of itself, so isinstance, output recorders, auxiliary losses, names of parameters, deepcopy, save and load stay
as they were. Outside a context the router runs its own code. A context belongs to one attachment and one thread
(contextvars): two threads may route the same network differently at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from pyro_smat.moe.contracts import Contract, Scoring, UnknownRouter, contract_of, router_candidates
from pyro_smat.moe.weighting import Weighting, weighting_of

_MARK = "_router"  # an entry of the instance's __dict__: no parameter, buffer or child, so not in the state dict


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
        hidden: ``(..., H)`` what the router was given.
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
_active: ContextVar[tuple[tuple[object, RoutingFunction], ...]] = ContextVar("routing functions", default=())


@dataclass(frozen=True)
class Attachment:
    """An attached network.

    Attributes:
        model: the network, changed in place.
        routers: those attached, in order.
    """

    model: nn.Module
    routers: tuple[Router, ...]

    @contextmanager
    def routing(self, function: RoutingFunction | None) -> Iterator[None]:
        """While it is open, and in this thread, ``function`` says the logits (or experts) of every attached router.

        Args:
            function: of a :class:`RouterCall`; returns logits ``(..., E)``, to which the router's own rule is applied,
                or :class:`Chosen` experts. None leaves the router as it is.
        """
        if function is None:
            yield
            return
        token = _active.set((*_active.get(), (self.routers[0].key, function)))
        try:
            yield
        finally:
            _active.reset(token)


def find_routers(model: nn.Module, leave: Sequence[str] = ()) -> tuple[Router, ...]:
    """The routers of experts in a network; attention routers and the gates of shared experts are left alone.

    Args:
        model: any network; of an attached one, the routers that are attached.
        leave: patterns (fnmatch) of names to pass over.

    Raises:
        UnknownRouter: for a router that is not understood; the message says which and what is missing.
        ValueError: when there is none.
    """
    if _is_attached(model):
        return tuple(r for r in attachment_of(model).routers if not any(fnmatch(r.name, pattern) for pattern in leave))
    found = []
    for name, module, parent in router_candidates(model):
        if any(fnmatch(name, pattern) for pattern in leave):
            continue
        contract = contract_of(name, module)
        found.append((name, contract, _top_k(module, parent), _hidden_size(module, contract)))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no router of experts; expected a module called gate, router or wg beside "
            "`experts`, or a class named *Router"
        )
    return tuple(
        Router(name, i, contract.num_experts, k, hidden, contract)
        for i, (name, contract, k, hidden) in enumerate(found)
    )


def attach(model: nn.Module, routers: Sequence[str] | None = None, *, leave: Sequence[str] = ()) -> Attachment:
    """Make the routers of a network replaceable, in place.

    Args:
        model: the network.
        routers: patterns (fnmatch) of the names to attach; None for all.
        leave: patterns of names to pass over, also of routers that are not understood.

    Raises:
        UnknownRouter: as in :func:`find_routers`.
        ValueError: for a network that is attached already, has no routers, or none of that name.

    Example:
        >>> attachment = attach(model)                                              # doctest: +SKIP
        >>> with attachment.routing(lambda call: call.logits + 0.1):                # doctest: +SKIP
        ...     model(input_ids)
        >>> detach(model)                                                           # doctest: +SKIP
    """
    if _is_attached(model):
        raise ValueError(f"{type(model).__name__} is attached already; use attachment_of(model), or detach it first")
    found = find_routers(model, leave)
    if routers is not None:
        found = tuple(r for r in found if any(fnmatch(r.name, pattern) for pattern in routers))
        if not found:
            raise ValueError(
                f"no router is called {list(routers)}; expected some of {[r.name for r in find_routers(model, leave)]}"
            )
    key = _Key()
    attached = []
    for index, router in enumerate(found):
        router = Router(router.name, index, router.num_experts, router.top_k, router.hidden_size, router.contract, key)
        target = _target(model, router)
        vars(target)[_MARK] = router
        base: Any = type(target)
        target.__class__ = _routed_class(base, router.contract.kind, router.contract.method)
        attached.append(router)
    return Attachment(model, tuple(attached))


def attachment_of(model: nn.Module) -> Attachment:
    """The attachment of an attached network, e.g. of a deepcopy.

    Raises:
        ValueError: when it is not attached.
    """
    routers = [vars(module)[_MARK] for module in model.modules() if _MARK in vars(module)]
    if not routers:
        raise ValueError(f"{type(model).__name__} is not attached; call attach(model)")
    return Attachment(model, tuple(sorted(routers, key=lambda router: router.index)))


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`; the network is as it was before, class by class."""
    for module in model.modules():
        if vars(module).pop(_MARK, None) is not None:
            module.__class__ = type(module).__mro__[1]
            vars(module).pop("_weighting", None)


def _is_attached(model: nn.Module) -> bool:
    return any(_MARK in vars(module) for module in model.modules())


class _Key:
    """Identity of an attachment: a deepcopied or unpickled network gets one of its own."""


def _target(model: nn.Module, router: Router) -> nn.Module:
    path = ".".join(part for part in (router.name, router.contract.target) if part)
    return model.get_submodule(path)


def _top_k(module: nn.Module, parent: nn.Module) -> int | None:
    for owner in (module, parent, getattr(module, "config", None), getattr(parent, "config", None)):
        for attribute in ("top_k", "topk", "num_experts_per_tok", "top_k_experts", "moe_top_k", "k"):
            if isinstance(k := getattr(owner, attribute, None), int):
                return k
    return {"SwitchTransformersTop1Router": 1, "NllbMoeTop2Router": 2}.get(type(module).__name__)


def _hidden_size(module: nn.Module, contract: Contract) -> int | None:
    holder = module.get_submodule(contract.target)
    if contract.kind == "identity" and contract.gate != "weight":
        holder = module.get_submodule(contract.gate)
    weight = getattr(holder, "weight", None)
    return weight.shape[1] if isinstance(weight, Tensor) and weight.dim() == 2 else None


def _current(module: nn.Module) -> RoutingFunction | None:
    key = vars(module)[_MARK].key
    return next((function for owner, function in reversed(_active.get()) if owner is key), None)


def _rebuild(base: type, kind: str, method: str) -> nn.Module:
    cls: Any = _routed_class(base, kind, method)
    return cls.__new__(cls)


@functools.cache
def _routed_class(base: type, kind: str, method: str) -> type:
    run = _forward_identity if kind == "identity" else _forward_logits

    def routed(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        function = _current(self)
        original = getattr(base, method)
        if function is None:
            return original(self, hidden, *args, **kwargs)
        return run(self, original, function, hidden, args, kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _rebuild, (base, kind, method), self.__dict__

    return type(
        "Routed" + base.__name__,
        (base,),
        {method: routed, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__},
    )


def _in_full_precision(function: RoutingFunction, call: RouterCall) -> Tensor | Chosen:
    """Call a routing function without autocast, which would multiply covariances in half precision."""
    with _no_autocast(call.hidden.device.type):
        return function(call)


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


# --- logits returned by a child or a method ---------------------------------------------------------------------------


def _forward_logits(
    module: nn.Module, original: Callable, function: RoutingFunction, hidden: Tensor, args: tuple, kwargs: Mapping
) -> Tensor:
    router: Router = vars(module)[_MARK]

    @_under_present_autocast(hidden.device.type)
    def logits_of(states: Tensor) -> Tensor:
        return _float(original(module, states, *args, **kwargs))

    def weighting() -> Weighting:
        raise NotImplementedError(
            f"router {router.name!r} ({router.contract.kind} contract) weighs its experts where it cannot be seen"
        )

    logits = original(module, hidden, *args, **kwargs)
    call = RouterCall(router, hidden, _float(logits), logits_of, weighting, router.contract.scoring)
    result = _in_full_precision(function, call)
    if isinstance(result, Chosen):
        if not router.contract.renormalises or result.factor is not None:
            raise NotImplementedError(
                f"router {router.name!r} ({type(module).__mro__[1].__name__}) makes weights of its own from all "
                "logits; experts can be chosen for it only by its own rule: return logits"
            )
        result = _only(result)
    return _checked(result, logits, router).to(logits.dtype)


def _only(chosen: Chosen) -> Tensor:
    """Logits of which the chosen are by far the largest; finite, since an identity gate multiplies them by zero."""
    kept = torch.zeros_like(chosen.logits, dtype=torch.bool).scatter(-1, chosen.index, True)
    return chosen.logits.masked_fill(~kept, torch.finfo(torch.bfloat16).min / 4)


def _checked(result: Tensor, logits: Tensor, router: Router) -> Tensor:
    if result.shape != logits.shape:
        raise ValueError(
            f"the routing function returned shape {tuple(result.shape)} for router {router.name!r}; "
            f"expected logits {tuple(logits.shape)}"
        )
    return result


# --- a gate matrix inside the router ----------------------------------------------------------------------------------


def _forward_identity(
    module: nn.Module, original: Callable, function: RoutingFunction, hidden: Tensor, args: tuple, kwargs: Mapping
) -> tuple:
    router: Router = vars(module)[_MARK]
    contract = router.contract
    quiet = _view(module, contract, None)
    reference = original(quiet, hidden, *args, **kwargs)
    logits = reference[contract.logits_index]
    if not isinstance(logits, Tensor) or logits.shape[-1] != router.num_experts:
        raise UnknownRouter(f"router {router.name!r}: output {contract.logits_index} is not its logits (..., E)")

    @_under_present_autocast(hidden.device.type)
    def logits_of(states: Tensor) -> Tensor:
        return _float(original(quiet, states, *args, **kwargs)[contract.logits_index])

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

    call = RouterCall(router, hidden, _float(logits), logits_of, weighting, _scoring(contract, weighting))
    result = _in_full_precision(function, call)
    if isinstance(result, Chosen):
        outputs = _weigh(result, call, contract, rule)
    else:
        outputs = rule(_checked(result, logits, router))
    return tuple(o.to(r.dtype) if isinstance(o, Tensor) else o for o, r in zip(outputs, reference, strict=True))


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
