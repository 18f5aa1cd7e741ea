"""Contexts of routing: what a run keeps, and that none does nothing without saying so."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from families import run, tiny
from gates import PlainBlock, block
from torch import Tensor, nn

from pyro_smat.guides.moe_routing import TokenRoutingGuide
from pyro_smat.models.variational_routing import CausalLM, VariationalRouting
from pyro_smat.moe import (
    Chosen,
    RouterCall,
    RoutingFunction,
    attach,
    attachment_of,
    detach,
    expected_routing,
    generate,
    predict,
    sampled_routing,
    trajectories,
)
from pyro_smat.moe.measures import recording

HIDDEN = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))


def opposite(call: RouterCall) -> Tensor:
    return -call.logits


@torch.no_grad()
def test_a_detached_network_is_not_routed_in_silence() -> None:
    model = tiny("mixtral", output_router_logits=False)
    attachment = attach(model)
    routing = VariationalRouting(attachment, CausalLM())
    guide = TokenRoutingGuide(routing, "full", trunk=4)
    functions = [sampled_routing(guide, seed) for seed in range(2)]
    ids = torch.tensor([[5, 6, 7]])
    plain = run(model).logits

    def refused() -> None:
        for attempt in (
            lambda: attachment.routing(opposite).__enter__(),
            lambda: predict(attachment, expected_routing(guide), lambda: run(model).logits),
            lambda: trajectories(attachment, functions, lambda: run(model).logits),
            lambda: generate(attachment, ids, functions, max_new_tokens=2),
            lambda: routing({"input_ids": ids, "labels": ids}),
        ):
            with pytest.raises(RuntimeError, match=r"'model.layers.0.mlp.gate'.*no longer attached.*attachment_of"):
                attempt()

    detach(model)
    refused()
    with attachment.routing(None):  # its own way, attached or not
        assert torch.equal(run(model).logits, plain)
    again = attach(model)
    refused()
    with again.routing(opposite):
        assert not torch.allclose(run(model).logits, plain)


@torch.no_grad()
def test_a_router_that_was_replaced_is_not_routed_in_silence() -> None:
    model = block(PlainBlock)
    attachment = attach(model)
    name = attachment.routers[0].name
    parent = model.get_submodule(name.rpartition(".")[0])
    for other in (nn.Linear(8, 5), None):
        parent.gate = other
        with pytest.raises(RuntimeError, match="no longer attached"), attachment.routing(opposite):
            model(HIDDEN)


@torch.no_grad()
def test_a_context_in_which_no_router_ran_raises() -> None:
    """Of a copy, of another thread, of nothing at all: each would leave mutual information at exactly 0."""
    model = tiny("mixtral")
    attachment = attach(model)
    other = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="none of the 2 attached routers of MixtralForCausalLM ran"):
        trajectories(attachment, [opposite], lambda: run(other).logits)
    with attachment_of(other).routing(opposite):
        run(other)

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: run(model))
        thread.start()
        thread.join()

    with pytest.raises(RuntimeError, match="in the thread that opened it"), attachment.routing(opposite):
        elsewhere()
    with pytest.raises(KeyError, match="mine"), attachment.routing(opposite):
        raise KeyError("mine")
    with attachment.routing(lambda call: call.logits), attachment.routing(opposite):  # the inner one answers for both
        inner = run(model).logits
    with attachment.routing(opposite):
        assert torch.equal(run(model).logits, inner)


@torch.no_grad()
def test_memory_lives_as_long_as_its_context() -> None:
    model = tiny("mixtral")
    attachment = attach(model)
    sizes: list[int] = []

    def counting(call: RouterCall) -> Tensor:
        call.memory[len(call.memory)] = call.router.index
        sizes.append(len(call.memory))
        return call.logits

    with attachment.routing(counting):
        run(model)
        with attachment.routing(counting):
            run(model)
        run(model)
    with attachment.routing(counting):
        run(model)
    assert sizes == [1, 2, 1, 2, 3, 4, 1, 2]
    memory: dict[object, int] = {}
    for _ in range(2):
        with attachment.routing(counting, memory):
            run(model)
    assert memory == {0: 0, 1: 1, 2: 0, 3: 1}


@pytest.mark.parametrize("kind", ["identity", "linear"])
def test_what_a_routing_function_returns_is_looked_at(kind: str) -> None:
    """Of routers of both kinds, also where it is recorded."""
    model = tiny("mixtral" if kind == "identity" else "hunyuan_v1_moe")
    attachment = attach(model)
    name = attachment.routers[0].name
    wrong: list[tuple[RoutingFunction, str]] = [
        (lambda call: None, f"returned NoneType for router '{name}'; expected logits .14, 8.*is a `return` missing"),
        (lambda call: (call.logits, 1), "returned tuple"),
        (lambda call: call.logits[..., :3], r"returned shape \(14, 3\).*expected logits \(14, 8\)"),
        (lambda call: Chosen(call.logits[:3], call.logits.topk(2).indices), r"returned shape \(3, 8\)"),
        (lambda call: Chosen(call.logits, call.logits.topk(2).values), r"chose experts \(14, 2\) torch.float32"),
        (lambda call: Chosen(call.logits, call.logits.topk(2).indices[:5]), r"chose experts \(5, 2\)"),
    ]
    for function, message in wrong:
        for context in (attachment.routing, lambda f: recording(attachment, f)):
            with pytest.raises((TypeError, ValueError), match=message), context(function):
                run(model)
