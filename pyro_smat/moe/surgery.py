"""Surgery on routers: a network's own routers, with logits that a function may replace while a context is open.

    network -> find_routers -> attach -> `with attachment.routing(function): network(...)` -> detach

Nothing is wrapped and nothing is hooked: the *class* of a router (or of the child that makes its logits) becomes a
subclass of itself, so isinstance, output recorders, auxiliary losses, names of parameters, deepcopy, save and load stay
as they were. Outside a context the router runs its own code. A context belongs to one attachment and one thread
(contextvars): two threads may route the same network differently at the same time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from pyro_smat.moe.calls import ENTRY, Memory, Router, RoutingFunction
from pyro_smat.moe.contracts import Contract, contract_of, router_candidates
from pyro_smat.moe.forwards import forward_identity, forward_logits


@dataclass
class _Run:
    """An open context: whose, what it routes by, and whether a router has asked."""

    key: object
    function: RoutingFunction
    memory: Memory
    asked: bool = False


_active: ContextVar[tuple[_Run, ...]] = ContextVar("routing functions", default=())


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
    def routing(self, function: RoutingFunction | None, memory: Memory | None = None) -> Iterator[None]:
        """While it is open, and in this thread, ``function`` says the logits (or experts) of every attached router.

        Args:
            function: of a :class:`RouterCall`; returns logits ``(..., E)``, to which the router's own rule is applied,
                or :class:`Chosen` experts. None leaves the router as it is.
            memory: of a run to go on with; by default a run starts, with an empty one (``RouterCall.memory``).

        Raises:
            RuntimeError: when the network was detached in the meantime; on closing, when no attached router ran.
        """
        if function is None:
            yield
            return
        self._check_attached()
        run = _Run(self.routers[0].key, function, {} if memory is None else memory)
        token = _active.set((*_active.get(), run))
        try:
            yield
        finally:
            _active.reset(token)
        if not run.asked:
            raise RuntimeError(
                f"none of the {len(self.routers)} attached routers of {type(self.model).__name__} ran while routing "
                "was open, so it did nothing; expected a run of attachment.model in the thread that opened it. A copy "
                "of the network is routed by its own attachment, attachment_of(copy)"
            )

    def _check_attached(self) -> None:
        for router in self.routers:
            try:
                entry = vars(_target(self.model, router)).get(ENTRY)
            except AttributeError:
                entry = None
            if entry is None or entry.key is not router.key:
                raise RuntimeError(
                    f"router {router.name!r} of {type(self.model).__name__} is no longer attached by this attachment "
                    "(detached, attached again, or replaced), so routing it would do nothing; call attach(network), or "
                    "attachment_of(network) if it is attached, and use what it returns, in VariationalRouting too"
                )


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
        vars(target)[ENTRY] = router
        base: Any = type(target)
        target.__class__ = _routed_class(base, router.contract.kind, router.contract.method)
        attached.append(router)
    return Attachment(model, tuple(attached))


def attachment_of(model: nn.Module) -> Attachment:
    """The attachment of an attached network, e.g. of a deepcopy.

    Raises:
        ValueError: when it is not attached.
    """
    routers = [vars(module)[ENTRY] for module in model.modules() if ENTRY in vars(module)]
    if not routers:
        raise ValueError(f"{type(model).__name__} is not attached; call attach(model)")
    return Attachment(model, tuple(sorted(routers, key=lambda router: router.index)))


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`; the network is as it was before, class by class."""
    for module in model.modules():
        if vars(module).pop(ENTRY, None) is not None:
            module.__class__ = type(module).__mro__[1]
            vars(module).pop("_weighting", None)


def _is_attached(model: nn.Module) -> bool:
    return any(ENTRY in vars(module) for module in model.modules())


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


def _current(module: nn.Module) -> _Run | None:
    """The innermost run of the module's attachment."""
    key = vars(module)[ENTRY].key
    runs = [run for run in _active.get() if run.key is key]
    for run in runs:
        run.asked = True
    return runs[-1] if runs else None


def _rebuild(base: type, kind: str, method: str) -> nn.Module:
    cls: Any = _routed_class(base, kind, method)
    return cls.__new__(cls)


@functools.cache
def _routed_class(base: type, kind: str, method: str) -> type:
    forward: Any = forward_identity if kind == "identity" else forward_logits

    def routed(self: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = _current(self)
        original = getattr(base, method)
        if run is None:
            return original(self, hidden, *args, **kwargs)
        return forward(self, original, run.function, run.memory, hidden, args, kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _rebuild, (base, kind, method), self.__dict__

    return type(
        "Routed" + base.__name__,
        (base,),
        {method: routed, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__},
    )
