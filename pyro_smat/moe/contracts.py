"""Router contracts: which modules of a network choose experts, and where their logits can be read and replaced.

Network -> candidates -> one contract each (or a refusal by name) -> ``surgery``. Three contracts cover what is in use:

* ``identity``: the gate is a bare matrix of the router, whose forward returns a tuple with the logits in it (most
  families of transformers). Any logits are routed by the router's own rule by calling its forward on a view of it whose
  gate matrix is the identity.
* ``linear``: the router calls a child (usually an nn.Linear) that returns the logits: DBRX, JetMoe, Switch, Gemma 4,
  torchtitan (``gate``), megablocks (``layer``), DeepSpeed and Tutel (``wg``), a plain block with ``gate = nn.Linear``.
* ``method``: a method ``hidden (..., H) -> logits (..., E)`` of the router: Megatron's ``gating``, OLMo-core's
  ``get_expert_logits``, or ``expert_logits`` of a router of your own.

To support a router of your own, give it a method ``expert_logits(hidden)`` that its forward calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Kind = Literal["identity", "linear", "method"]
Scoring = Literal["softmax", "sigmoid"]

METHODS = ("expert_logits", "gating", "get_expert_logits")
CHILDREN = ("gate", "layer", "wg", "classifier", "proj", "router", "linear", "weight")
_ROUTER_CLASS = re.compile(r"(Router|TopKGating|TopKGate|TopKRouter|Top\dRouter|MoE\w*Gate|LinearGate)$")
_ATTENTION = re.compile(r"(^|[._])(self_)?(attn|attention|cross_attn)", re.IGNORECASE)
_SHARED = re.compile(r"shared", re.IGNORECASE)
_COUNTS = ("top_k", "topk", "k", "num_experts", "num_experts_per_tok", "moe_top_k", "n_routed_experts", "num_expert")


class UnknownRouter(ValueError):
    """A module that looks like a router of experts, with logits out of reach; the message says what is missing."""


@dataclass(frozen=True)
class Contract:
    """Where the logits of one router are.

    Attributes:
        kind: as in the module's docstring.
        target: path from the router to the module whose class is exchanged; "" is the router itself.
        method: the method of the target that is replaced.
        num_experts: E, the length of the logits.
        logits_index: which output of an ``identity`` router holds the logits.
        gate: attribute of an ``identity`` router that holds the matrix, or a child whose weight is the matrix.
        overrides: attributes of the identity view, so that nothing is done to the logits twice.
        scoring: what a score is made with, for routers that do not show it themselves.
        renormalises: whether masking out experts leaves the weights of the others right (``linear`` and ``method``).
    """

    kind: Kind
    num_experts: int
    target: str = ""
    method: str = "forward"
    logits_index: int = 0
    gate: str = "weight"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scoring: Scoring = "softmax"
    renormalises: bool = True


def router_candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Name, module and parent of everything in ``model`` that looks like a router of experts.

    Attention routers (mixtures of attention heads) and the gates of shared experts are passed over. What lies inside a
    router is part of it.
    """
    inside: list[str] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        path, _, last = name.rpartition(".")
        parent = modules[path] if name else module
        if _ATTENTION.search(path) or _SHARED.search(last) or not _looks_like_router(last, module, parent):
            continue
        inside.append(name + ".")
        yield name, module, parent


def contract_of(name: str, module: nn.Module) -> Contract:
    """The contract of a candidate.

    Args:
        name: path of the router, for the message.
        module: the router.

    Raises:
        UnknownRouter: when its logits cannot be reached.
    """
    if "forward" in vars(module):
        raise UnknownRouter(
            f"router {name!r} ({type(module).__name__}) has a forward of its own on the instance (an accelerate "
            "hook or a hub kernel); attach before it is installed"
        )
    known = _KNOWN.get(type(module).__name__)
    if isinstance(known, str):
        raise UnknownRouter(f"router {name!r} ({type(module).__name__}): {known}; leave it out with leave=({name!r},)")
    for method in METHODS:
        if callable(getattr(type(module), method, None)):
            return Contract("method", _count(name, module), method=method)
    if known is not None:
        return _known_contract(name, module, dict(known))
    weight = vars(module).get("_parameters", {}).get("weight")
    if type(module) is nn.Linear:
        return Contract("linear", module.out_features)
    if weight is not None and weight.dim() == 2:
        return Contract("identity", weight.shape[0])
    children = [c for c in CHILDREN if isinstance(getattr(module, c, None), nn.Linear)]
    if len(children) == 1:
        return Contract("linear", getattr(module, children[0]).out_features, target=children[0])
    found = f"several of them: {children}" if children else "neither"
    raise UnknownRouter(
        f"router {name!r} ({type(module).__name__}) is not understood: expected a method {' or '.join(METHODS)} "
        f"(hidden -> logits), a gate matrix `weight` of shape (experts, hidden), or one nn.Linear named "
        f"{', '.join(CHILDREN[:5])}; found {found}. Give it a method `expert_logits`, or leave=({name!r},)"
    )


def _looks_like_router(last: str, module: nn.Module, parent: nn.Module) -> bool:
    counted = any(isinstance(getattr(module, count, None), int) for count in _COUNTS)
    if _ROUTER_CLASS.search(type(module).__name__):
        return counted or any(callable(getattr(type(module), m, None)) for m in METHODS) or hasattr(parent, "experts")
    plain = type(module) is nn.Linear and last in ("gate", "router", "wg", "gating")
    return (plain or callable(getattr(type(module), "expert_logits", None))) and hasattr(parent, "experts")


def _count(name: str, module: nn.Module) -> int:
    for owner in (module, getattr(module, "config", None)):
        for attribute in ("num_experts", "n_routed_experts", "num_moe_experts", "num_local_experts"):
            if isinstance(count := getattr(owner, attribute, None), int):
                return count
    raise UnknownRouter(f"router {name!r} ({type(module).__name__}) does not say how many experts it has: num_experts")


def _known_contract(name: str, module: nn.Module, options: dict[str, Any]) -> Contract:
    kind = options.pop("kind", "linear")
    holder: Any = getattr(module, options.get("gate" if kind == "identity" else "target", ""), module)
    weight = getattr(holder, "weight", holder)
    rows = weight.shape[0] if isinstance(holder, nn.Linear) or hasattr(weight, "shape") else _count(name, module)
    return Contract(kind, options.pop("num_experts", rows), **options)


# What cannot be read off a router's attributes: class -> contract, or why there is none.
_KNOWN: dict[str, dict[str, Any] | str] = {
    "Llama4Router": {"kind": "identity", "logits_index": 1, "scoring": "sigmoid"},
    "LongcatFlashTopkRouter": {"kind": "identity", "gate": "classifier"},
    "AfmoeTokenChoiceRouter": {"target": "gate", "scoring": "sigmoid", "renormalises": False},
    "SwitchTransformersTop1Router": {"target": "classifier", "renormalises": False},
    "NllbMoeTop2Router": {"target": "classifier"},
    "TokenChoiceTopKRouter": {"target": "gate", "renormalises": False},
    "DeepseekV4HashRouter": "experts are looked up by token id, so there are no logits to be uncertain about",
    "InklingTopkRouter": "its logits hold those of the shared experts too, which take part in every weight",
    "ZayaRouter": "its logits come from a network over the states of the router before, with a class for no expert",
}
