"""Surgery changes nothing by itself, in every family, and leaves no trace."""

from __future__ import annotations

import copy
import io
import threading
from pathlib import Path

import pytest
import torch
from families import FAMILIES, run, tiny, tokens
from gates import GATES, PlainBlock, block
from torch import Tensor, nn

from pyro_smat.moe import Chosen, RouterCall, UnknownRouter, attach, attachment_of, detach, find_routers


def recorded(output: object) -> list[Tensor]:
    """What an output holds of router logits, flattened."""
    found: list[Tensor] = []
    for name in ("router_logits", "encoder_router_logits", "decoder_router_logits"):
        for entry in getattr(output, name, None) or ():
            found.extend(t for t in (entry if isinstance(entry, tuple) else (entry,)) if isinstance(t, Tensor))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_its_own_logits_change_nothing(family: str) -> None:
    model = tiny(family)
    before, keys, classes = run(model), list(model.state_dict()), [type(m) for m in model.modules()]
    attachment = attach(model)
    seen: list[int] = []

    def own(call: RouterCall) -> Tensor:
        seen.append(call.router.index)
        assert call.logits.shape[-1] == call.router.num_experts
        assert call.hidden.shape[-1] == call.router.hidden_size
        torch.testing.assert_close(call.logits_of(call.hidden), call.logits, rtol=0, atol=0)
        return call.logits

    with attachment.routing(own):
        same = run(model)
    assert torch.equal(same.logits, before.logits)
    assert sorted(set(seen)) == list(range(len(attachment.routers)))
    pairs = list(zip(recorded(same), recorded(before), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert getattr(before, "aux_loss", None) is None or torch.equal(same.aux_loss, before.aux_loss)
    with attachment.routing(lambda call: -call.logits):
        other = run(model)
    assert not torch.allclose(other.logits, before.logits)
    if family != "gemma4_text":  # records probabilities, and only where it is asked to
        assert not pairs or any(not torch.equal(a, b) for a, b in zip(recorded(other), recorded(before), strict=True))
    assert list(model.state_dict()) == keys
    assert all(isinstance(m, c) for m, c in zip(model.modules(), classes, strict=True))
    detach(model)
    assert [type(m) for m in model.modules()] == classes
    assert not any(key.startswith("_router") or key == "_weighting" for m in model.modules() for key in vars(m))
    assert torch.equal(run(model).logits, before.logits)


def test_many_families() -> None:
    assert len(set(FAMILIES)) >= 40


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "granitemoe", "gpt_oss", "deepseek_v3"])
@torch.no_grad()
def test_experts_implementations(family: str, implementation: str) -> None:
    model = tiny(family, implementation)
    before = run(model).logits
    with attach(model).routing(lambda call: call.logits):
        assert torch.equal(run(model).logits, before)
    shift = torch.linspace(-1, 1, 8)
    with attachment_of(model).routing(lambda call: call.logits + shift):
        shifted = run(model).logits
    eager = tiny(family, "eager")
    with attach(eager).routing(lambda call: call.logits + shift):
        torch.testing.assert_close(shifted, run(eager).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "deepseek_v3", "jetmoe", "gpt_oss"])
def test_gradients_reach_the_logits(family: str, dtype: torch.dtype) -> None:
    model = tiny(family).to(dtype)
    shift = torch.zeros(8, requires_grad=True)
    with attach(model).routing(lambda call: call.logits + shift):
        run(model).logits.float().square().mean().backward()
    assert shift.grad is not None
    assert shift.grad.abs().sum() > 0


@torch.no_grad()
def test_routing_functions_compute_in_full_precision_under_autocast() -> None:
    model = tiny("mixtral")
    products: list[torch.dtype] = []

    def function(call: RouterCall) -> Tensor:
        products.append((call.logits @ torch.eye(8)).dtype)
        assert torch.equal(call.logits_of(call.hidden), call.logits)
        return call.logits

    with torch.autocast("cpu", torch.bfloat16):
        before = run(model).logits
        with attach(model).routing(function):
            assert torch.equal(run(model).logits, before)
        fine = 1 + 2**-12 * torch.arange(8.0)  # as bfloat16 these would all be one
        chosen: list[Tensor] = []
        model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda module, args: chosen.append(args[1]))
        with attachment_of(model).routing(lambda call: fine.expand_as(call.logits)):
            run(model)
    assert set(products) == {torch.float32}
    assert chosen[0].unique().tolist() == [6, 7]


def test_auxiliary_loss_is_of_the_logits_used() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = tiny("mixtral", output_router_logits=True)
    used: list[Tensor] = []

    def noisy(call: RouterCall) -> Tensor:
        used.append(call.logits + torch.randn(call.logits.shape, generator=generator))
        return used[-1]

    generator = torch.Generator().manual_seed(0)
    with attach(model).routing(noisy), torch.no_grad():
        output = run(model, labels=tokens()["input_ids"])
    expected = load_balancing_loss_func(tuple(used), 8, 2)
    torch.testing.assert_close(output.aux_loss, expected)
    assert not torch.allclose(output.aux_loss, run(model, labels=tokens()["input_ids"]).aux_loss)


@pytest.mark.parametrize("family", ["mixtral", "jetmoe", "llama4_text"])
@torch.no_grad()
def test_copies_pickles_and_saved_models(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    attach(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)  # before transformers' own output recorders, which no pickle takes, are installed
    other = copy.deepcopy(model)
    with attachment_of(other).routing(lambda call: -call.logits):
        changed, untouched = run(other).logits, run(model).logits
    assert not torch.allclose(changed, untouched)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    with attachment_of(loaded).routing(lambda call: -call.logits):
        assert torch.equal(run(loaded).logits, changed)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(type(model).from_pretrained(tmp_path, attn_implementation="eager")).logits, untouched)


@torch.no_grad()
def test_a_copy_records_once() -> None:
    model = tiny("mixtral", output_router_logits=True)
    run(model)  # installs the recorders
    attach(model)
    other = copy.deepcopy(model)
    with attachment_of(other).routing(lambda call: call.logits):
        assert len(run(other).router_logits) == len(run(model).router_logits) == 2


@torch.no_grad()
def test_states_loaded_later_count() -> None:
    model, other = tiny("deepseek_v3"), tiny("deepseek_v3")
    for module in other.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.copy_(torch.linspace(3, -3, 8))
    attachment = attach(model)
    model.load_state_dict(other.state_dict())
    with attachment.routing(lambda call: call.logits):
        assert torch.equal(run(model).logits, run(other).logits)


@torch.no_grad()
def test_threads_route_apart() -> None:
    model = tiny("mixtral")
    attachment = attach(model)

    def work(sign: float) -> Tensor:
        with attachment.routing(lambda call: sign * call.logits):
            return run(model).logits

    alone = [work(sign) for sign in (1.0, -1.0)]
    results: dict[int, Tensor] = {}
    for _ in range(5):
        threads = [
            threading.Thread(target=lambda i=i, s=s: results.__setitem__(i, work(s))) for i, s in enumerate((1.0, -1.0))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(results[i], alone[i]) for i in range(2))


@pytest.mark.parametrize("kind", [PlainBlock, *GATES])
@torch.no_grad()
def test_gates_of_other_libraries(kind: type[nn.Module]) -> None:
    model = block(kind)
    hidden = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    before = model(hidden)
    attachment = attach(model)
    assert [(r.num_experts, r.top_k) for r in attachment.routers] == [(5, 2)]
    with attachment.routing(lambda call: call.logits):
        assert torch.equal(model(hidden), before)
    with attachment.routing(lambda call: -call.logits):
        assert not torch.allclose(model(hidden), before)
    detach(model)
    assert torch.equal(model(hidden), before)


@pytest.mark.parametrize(
    "family", ["mixtral", "olmoe", "llama4_text", "jetmoe", "gpt_oss", "gemma4_text", "deepseek_v3"]
)
@torch.no_grad()
def test_choosing_what_the_rule_would_choose_changes_nothing(family: str) -> None:
    options = {"n_group": 1, "topk_group": 1} if family == "deepseek_v3" else {}
    model = tiny(family, **options)
    before = run(model).logits
    with attach(model).routing(lambda call: Chosen(call.logits, call.logits.topk(2, -1).indices)):
        torch.testing.assert_close(run(model).logits, before, rtol=1e-4, atol=1e-4)


def test_routers_of_attention_and_shared_experts_are_left_alone() -> None:
    assert [r.name for r in find_routers(tiny("jetmoe"))] == [f"model.layers.{i}.mlp.router" for i in range(2)]
    model = tiny("jetmoe")
    assert find_routers(model) == attach(model).routers == find_routers(model)
    assert [r.name for r in find_routers(tiny("qwen2_moe"))] == [f"model.layers.{i}.mlp.gate" for i in range(2)]


class StrangeRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(self.first(tokens))


def test_refusals_name_the_router_and_what_is_missing() -> None:
    with pytest.raises(UnknownRouter, match=r"'0.router' \(StrangeRouter\).*expert_logits"):
        attach(block(StrangeRouter))
    for family, options, reason in (
        ("deepseek_v4", {}, "looked up by token id"),
        ("inkling_text", {}, "shared experts"),
        ("zaya", {"num_experts_per_tok": 1}, "the states of the router before"),
    ):
        with pytest.raises(UnknownRouter, match=rf"{reason}.*leave it out with leave="):
            attach(tiny(family, **options))
    with pytest.raises(ValueError, match="no router of experts"):
        attach(nn.Linear(3, 3))
    hooked = block(PlainBlock)
    hooked[0].gate.forward = lambda tokens: tokens
    with pytest.raises(UnknownRouter, match="forward of its own on the instance"):
        attach(hooked)
    model = tiny("mixtral")
    with pytest.raises(ValueError, match="no router is called"):
        attach(model, ["nothing"])
    attach(model, ["*.0.*"])
    assert len(attachment_of(model).routers) == 1
    with pytest.raises(ValueError, match="attached already"):
        attach(model)
    switch = tiny("switch_transformers")
    with (
        attach(switch).routing(lambda call: Chosen(call.logits, call.logits.topk(1, -1).indices)),
        pytest.raises(NotImplementedError, match="weights of its own from all logits"),
    ):
        run(switch)


def test_nothing_else_is_attached_in_deepseek_v4_when_hash_layers_are_left_out() -> None:
    model = tiny("deepseek_v4")
    names = [n for n, m in model.named_modules() if type(m).__name__ == "DeepseekV4HashRouter"]
    if len(names) < sum("Router" in type(m).__name__ for m in model.modules()):
        assert not {r.name for r in attach(model, leave=names).routers} & set(names)
