"""Gate distributions by simulation and quadrature, groups by hand and by network surgery, selection by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from pyro_smat.networks import Conv4, build_network
from pyro_smat.networks.gates import (
    STRETCH_HIGH,
    STRETCH_LOW,
    TEMPERATURE,
    gate_groups,
    hard_concrete,
    lowering_shift,
    mean_gate,
    open_probability,
    select_gates,
    straight_through,
)
from pyro_smat.networks.parameters import ParameterSpace

DRAWS = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def logit_at(z: float) -> float:
    """The logistic value at which the stretched gate equals z: beta logit((z - gamma) / (zeta - gamma))."""
    share = (z - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    return TEMPERATURE * math.log(share / (1 - share))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.7, 0.0, 0.5, 2.5])
def test_distribution_of_the_gate_against_its_closed_form(log_alpha: float) -> None:
    gates = hard_concrete(torch.full((DRAWS,), log_alpha, dtype=torch.float64), uniform((DRAWS,)))
    tolerance = 4 * 0.5 / math.sqrt(DRAWS)

    def cdf(z: float) -> float:  # P(gate <= z) for 0 <= z < 1
        return 1 / (1 + math.exp(log_alpha - logit_at(z)))

    assert (gates > 0).double().mean().item() == pytest.approx(
        open_probability(torch.tensor(log_alpha)).item(), abs=tolerance
    )
    assert (gates == 0).double().mean().item() == pytest.approx(cdf(0.0), abs=tolerance)
    assert (gates == 1).double().mean().item() == pytest.approx(1 - cdf(1.0), abs=tolerance)
    for z in (0.1, 0.3, 0.5, 0.9):
        assert (gates <= z).double().mean().item() == pytest.approx(cdf(z), abs=tolerance)
    grid = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001  # mean and variance by quadrature over u
    exact = hard_concrete(torch.full_like(grid, log_alpha), grid)
    assert gates.mean().item() == pytest.approx(exact.mean().item(), abs=tolerance)
    assert gates.var().item() == pytest.approx(exact.var().item(), abs=tolerance)
    assert exact.var() > 0.01  # truly stochastic


def test_constants_are_those_of_the_paper_and_the_gate_is_computed_by_hand() -> None:
    assert (pytest.approx(2 / 3), -0.1, 1.1) == (TEMPERATURE, STRETCH_LOW, STRETCH_HIGH)
    u, a = 0.3, 0.4
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + a) / (2 / 3)))
    gate = hard_concrete(torch.tensor([a], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
    assert gate.item() == pytest.approx(1.2 * s - 0.1, abs=1e-12)


def test_the_noiseless_gate_is_the_median_of_the_noisy_one() -> None:
    log_alpha = torch.linspace(-3, 3, 25, dtype=torch.float64)
    median = hard_concrete(log_alpha, uniform((40_001, 25))).median(0).values
    torch.testing.assert_close(hard_concrete(log_alpha), median, atol=0.02, rtol=0)
    threshold = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)  # -1.5986: P(open) = 1/2 and the median closes
    around = torch.tensor([threshold - 1e-3, threshold + 1e-3], dtype=torch.float64)
    assert hard_concrete(around)[0] == 0
    assert hard_concrete(around)[1] > 0
    assert open_probability(torch.tensor(threshold, dtype=torch.float64)).item() == pytest.approx(0.5)


def test_extreme_noise_stays_finite() -> None:
    noise = torch.tensor([0.0, 1.0, 0.5])
    log_alpha = torch.zeros(3, requires_grad=True)
    gates = hard_concrete(log_alpha, noise)
    gates.sum().backward()
    assert gates.tolist() == [0.0, 1.0, pytest.approx(0.5)]
    assert log_alpha.grad is not None
    assert torch.isfinite(log_alpha.grad).all()


def test_mean_of_the_gate_against_quadrature() -> None:
    log_alpha = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    exact = hard_concrete(log_alpha.unsqueeze(-1), grid).mean(-1)
    assert (mean_gate(log_alpha) - exact).abs().max() < 0.004


def test_straight_through_is_binary_forwards_and_a_sigmoid_backwards() -> None:
    log_alpha = torch.linspace(-4, 4, 9, dtype=torch.float64).reshape(1, -1).requires_grad_()
    selected = torch.arange(9).reshape(1, -1) % 2 == 0
    gates = straight_through(log_alpha, selected)
    assert torch.equal(gates, selected.double())
    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * gates).sum(), log_alpha)
    step = 1e-6
    up, down = (torch.sigmoid((log_alpha.detach() + s) / TEMPERATURE) for s in (step, -step))
    torch.testing.assert_close(gradient, weights * (up - down) / (2 * step))


def greedy(scores: list[float], sizes: list[int], wanted: float, budget: int) -> list[bool]:
    """Gate by gate, in words: nearest to the wanted count, then whatever fits."""
    kept, before, left = [False] * len(sizes), 0, budget
    for gate in sorted(range(len(sizes)), key=lambda g: (-scores[g], g)):
        if before + sizes[gate] / 2 > wanted:
            break
        before += sizes[gate]
        if sizes[gate] <= left:
            kept[gate] = True
            left -= sizes[gate]
    return kept


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data())
def test_selection_against_a_loop_over_gates(data: st.DataObject) -> None:
    sizes = data.draw(
        st.one_of(
            st.lists(st.integers(1, 12), min_size=1, max_size=30),
            st.builds(lambda size, count: [size] * count, st.integers(1, 3), st.integers(1, 30)),
        )
    )
    scores = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), min_size=len(sizes), max_size=len(sizes)))
    wanted = data.draw(st.floats(0, 1.2 * sum(sizes)))
    budget = data.draw(st.integers(0, sum(sizes) + 2))
    tensors = (
        torch.tensor([scores, scores[::-1]]),
        torch.tensor(sizes),
        torch.tensor([wanted, sum(sizes) + 0.0]).double(),
    )
    selected = select_gates(*tensors, budget)
    assert selected[0].tolist() == greedy(scores, sizes, wanted, budget)
    assert selected[1].tolist() == greedy(scores[::-1], sizes, sum(sizes), budget)
    assert (selected * torch.tensor(sizes)).sum(-1).max() <= budget


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    gates=st.integers(1, 400),
    share=st.floats(1e-3, 1.0),
    spread=st.floats(0, 20),
    mean=st.floats(-10, 10),
    largest=st.integers(1, 500),
    double=st.booleans(),
    seed=st.integers(0, 10),
)
def test_lowering_reaches_the_limit_and_not_more(
    gates: int, share: float, spread: float, mean: float, largest: int, double: bool, seed: int
) -> None:
    dtype = torch.float64 if double else torch.float32
    log_alpha = mean + spread * torch.randn(3, gates, generator=seeded(seed), dtype=dtype)
    sizes = torch.randint(1, largest + 1, (gates,), generator=seeded(seed))
    limit = share * float(sizes.sum())

    def count(x: Tensor) -> Tensor:
        return open_probability(x.double()) @ sizes.double()

    shift = lowering_shift(log_alpha, sizes, limit)
    assert shift.dtype == dtype
    before, after = count(log_alpha), count(log_alpha + shift.unsqueeze(-1))
    assert (after <= limit).all()
    over = before > limit * (1 + 1e-5)
    assert (shift[over] < 0).all()
    assert (after[over] >= limit * (1 - 2e-5)).all()
    assert (shift[before < limit] == 0).all()


# ---- groups ----


class Mixed(nn.Module):
    """A scalar, running statistics, layers in and out of containers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 2)), nn.ReLU(), nn.Linear(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x


def tiny_vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    return VisionTransformer(**{**shape, "num_classes": 3, **options}).double().eval()


def partition(space: ParameterSpace, group: Tensor, gates: int) -> dict[str, list[int]]:
    """Gates that each tensor uses."""
    named = space.unflatten(group)
    return {name: sorted({g for g in tensor.flatten().tolist() if g < gates}) for name, tensor in named.items()}


@pytest.mark.parametrize("blocks", [None, {"body": "body", "rest": ".*"}])
def test_coordinates_channels_and_tensors(blocks: dict[str, str] | None) -> None:
    space = ParameterSpace.from_module(Mixed(), blocks)
    for granularity in ("coordinate", "channel", "tensor"):
        group, sizes = gate_groups(space, granularity)  # type: ignore[arg-type]
        assert torch.equal(group < len(sizes), space.trainable())
        assert int(sizes.sum()) == int(space.trainable().sum())
        gate = 0
        for entry in space.entries:
            tensor = group[entry.offset : entry.offset + entry.numel].reshape(entry.shape)
            if not entry.trainable:
                assert (tensor == len(sizes)).all()
                continue
            units = {"coordinate": tensor.flatten(), "channel": tensor if entry.shape else tensor[None]}
            for unit in units.get(granularity, tensor[None]):
                assert (unit == gate).all()
                assert sizes[gate] == unit.numel()
                gate += 1
        assert gate == len(sizes)


def test_blocks_of_the_space_come_first() -> None:
    space = ParameterSpace.from_module(Mixed(), {"body": "body", "rest": ".*"})
    group, sizes = gate_groups(space, "block")
    assert sizes.tolist() == [space.block_sizes[0], space.block_sizes[1] - 8]
    assert torch.equal(group[space.trainable()], torch.arange(2).repeat_interleave(sizes))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Mixed, ["", "body.0", "body.2", "norm", "stem"]),
        (lambda: Conv4(channels=8, image_size=16), [f"blocks.{i}" for i in range(4)]),
        (
            lambda: build_network("resnet18"),
            ["bn1", "conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))],
        ),
        (lambda: build_network("mobilenet_v2"), sorted(f"features.{i}" for i in range(19))),
        (
            tiny_vit,
            [
                "",
                "conv_proj",
                "encoder",
                *(f"encoder.layers.encoder_layer_{i}" for i in range(2)),
                "encoder.ln",
                "heads.head",
            ],
        ),
        (lambda: nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)}), ["attention"]),
        (lambda: nn.Sequential(nn.Identity(), Conv4(channels=8, image_size=16)), [f"1.blocks.{i}" for i in range(4)]),
    ],
)
def test_blocks_of_networks(build: Callable[[], nn.Module], expected: list[str]) -> None:
    module = build()
    space = ParameterSpace.from_module(module)
    group, sizes = gate_groups(space, "block", module)
    assert len(sizes) == len(expected)
    used = partition(space, group, len(sizes))
    trained = {name for name, _ in module.named_parameters()}
    gate_of_path: dict[str, set[int]] = {}
    for name, gates in used.items():
        if name in trained:
            path = max((p for p in expected if p == "" or name.startswith(p + ".")), key=len)
            gate_of_path.setdefault(path, set()).update(gates)
    assert sorted(gate_of_path) == expected
    assert all(len(gates) == 1 for gates in gate_of_path.values())
    assert len(set.union(*gate_of_path.values())) == len(expected)


def attention(layer: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, silent: int | None) -> Tensor:
    """Multi-head attention head by head, ``(n, tokens, width)``, with the output of one head set to zero."""
    width, head = layer.embed_dim, layer.head_dim
    if layer.in_proj_weight is None:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    else:
        weights = list(layer.in_proj_weight.split(width))
    biases = layer.in_proj_bias.split(width)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))
    if layer.bias_k is not None and layer.bias_v is not None:
        k = torch.cat([k, layer.bias_k.expand(len(k), 1, width)], 1)
        v = torch.cat([v, layer.bias_v.expand(len(v), 1, width)], 1)
    outputs = []
    for h in range(layer.num_heads):
        part = slice(h * head, (h + 1) * head)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(head)
        output = scores.softmax(-1) @ v[..., part]
        outputs.append(0 * output if h == silent else output)
    return F.linear(torch.cat(outputs, -1), layer.out_proj.weight, layer.out_proj.bias)


@pytest.mark.parametrize("options", [{}, {"kdim": 5, "vdim": 7}, {"add_bias_kv": True}])
def test_closing_a_head_silences_that_head(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=True, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    space = ParameterSpace.from_module(layer)
    group, sizes = gate_groups(space, "head", layer)
    assert len(sizes) == 3 + 12  # heads, and the channels of the output bias
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 5, layer.kdim), torch.randn(2, 5, layer.vdim)
    inputs = tuple(x.double() for x in (q, k, v))
    theta = space.flatten(dict(layer.state_dict()))

    def run(weights: Tensor) -> Tensor:
        return functional_call(layer, space.unflatten(weights), inputs, {"need_weights": False})[0]

    torch.testing.assert_close(run(theta), attention(layer, *inputs, silent=None))
    head_gates = space.unflatten(group)["out_proj.weight"][0, ::4].tolist()
    for h, gate in enumerate(head_gates):
        torch.testing.assert_close(run(theta * (group != gate)), attention(layer, *inputs, silent=h))
    # A head owns all that only it uses: without its gate every tensor's slice for the head is closed.
    named = space.unflatten(group)
    assert int(sizes[head_gates].sum()) == space.dim - 12
    assert set(named["out_proj.bias"].tolist()).isdisjoint(head_gates)


def test_closing_a_head_of_a_vision_transformer_silences_that_head(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_vit()
    nn.init.normal_(network.heads.head.weight)  # torchvision starts at zero
    space = ParameterSpace.from_module(network)
    group, sizes = gate_groups(space, "head", network)
    theta = space.flatten(network.state_dict())
    layer = network.encoder.layers.encoder_layer_1.self_attention
    of_head = space.unflatten(group)["encoder.layers.encoder_layer_1.self_attention.in_proj_weight"][4:8]
    assert (of_head == of_head[0, 0]).all()
    assert sizes[of_head[0, 0]] == 4 * (3 * 8 + 8) + 3 * 4
    images = torch.randn(3, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    whole = network(images)
    closed = functional_call(network, space.unflatten(theta * (group != of_head[0, 0])), (images,))
    monkeypatch.setattr(layer, "forward", lambda q, k, v, **_: (attention(layer, q, k, v, silent=1), None))
    torch.testing.assert_close(closed, network(images))
    assert not torch.allclose(closed, whole)


def test_other_tensors_of_a_head_bank_have_a_gate_a_channel() -> None:
    network = tiny_vit()
    space = ParameterSpace.from_module(network, {"late": r".*encoder_layer_1|heads", "early": ".*"})
    group, sizes = gate_groups(space, "head", network)
    assert int(sizes.sum()) == space.dim
    used = partition(space, group, len(sizes))
    heads = {name: gates for name, gates in used.items() if "self_attention" in name and "out_proj.bias" not in name}
    assert len({tuple(gates) for gates in heads.values()}) == 2  # one set of gates a layer, shared by its tensors
    assert all(len(gates) == 2 for gates in heads.values())
    channels = [name for name in used if name not in heads]
    assert all(len(used[name]) == space.unflatten(group)[name].shape[0] for name in channels)
    assert len(sizes) == 4 + sum(len(used[name]) for name in channels)


def test_refused_groups() -> None:
    space = ParameterSpace.from_module(Mixed())
    with pytest.raises(ValueError, match=r"granularity is 'layer'; expected one of 'coordinate', .*'head'"):
        gate_groups(space, "layer")  # type: ignore[arg-type]
    for granularity in ("head", "block"):
        with pytest.raises(ValueError, match=f"'{granularity}' follows the network's layers; pass module="):
            gate_groups(space, granularity)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"module has no tensor 'body\.0\.0\.bias'"):
            gate_groups(space, granularity, nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no nn.MultiheadAttention; expected 'channel'"):
        gate_groups(space, "head", Mixed())
