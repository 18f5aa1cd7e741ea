"""Weight and activation matching: a permuted copy is recovered bit for bit, the objective is what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
import small_networks as networks
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_smat.networks import Conv4, build_network
from pyro_smat.sources.alignment import (
    Observation,
    PermutationGroup,
    PermutationSpec,
    Slot,
    align_activations,
    align_all,
    align_weights,
    find_groups,
    permute,
    random_permutations,
)
from pyro_smat.sources.alignment.assignment import best_permutation

VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}
CASES = {
    "mlp": (networks.mlp, (64, 6)),
    "conv4": (lambda: Conv4(1, 32, 16), (16, 1, 16, 16)),  # normalisation in groups of 8 channels
    "residual": (networks.Residual, (16, 3, 8, 8)),
    "transformer": (networks.Transformer, (32, 7, 5)),
    "vit": (lambda: build_network("vit", **VIT), (16, 3, 32, 32)),
    "channels last": (networks.ChannelsLast, (16, 3, 8, 8)),
}


def _trained_looking(network: nn.Module) -> dict[str, Tensor]:
    """Weights whose scales, biases and running statistics differ from unit to unit, as after training."""
    generator = torch.Generator().manual_seed(7)

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator)

    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            state[name] = 0.5 + noise(tensor)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            state[name] = noise(tensor) - 0.5
        else:
            state[name] = tensor.clone()
    return state


def _pair(case: str) -> tuple[nn.Module, Tensor, PermutationSpec, dict[str, Tensor], dict[str, Tensor]]:
    """Module, inputs, groups, a reference, and a copy of it with all units permuted."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    network, inputs = build().eval(), torch.randn(shape)
    spec = find_groups(network, inputs[:2])
    reference = _trained_looking(network)
    permutations = random_permutations(spec, torch.Generator().manual_seed(1))
    return network, inputs, spec, reference, permute(reference, spec, permutations)


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("case", CASES)
def test_a_permuted_copy_is_recovered_bit_for_bit(case, method):
    network, inputs, spec, reference, copy = _pair(case)
    assert not all(torch.equal(copy[name], reference[name]) for name in reference)
    if method == "weights":
        alignment = align_weights(copy, reference, spec)
    else:
        alignment = align_activations(copy, reference, spec, network, inputs, batch_size=10)
    assert all(torch.equal(alignment.state[name], reference[name]) for name in reference)
    assert alignment.distance_after == 0 < alignment.distance_before
    assert all(group.before < group.after == pytest.approx(1, abs=1e-6) for group in alignment.groups)
    for group in alignment.groups:
        order = alignment.permutations[group.name]
        assert group.moved == pytest.approx(sum(int(p) != k for k, p in enumerate(order)) / group.size)
    if method == "activations":
        heads = [group.by for group in alignment.groups if "heads" in group.name]
        assert heads == ["weights"] * len(heads)  # no module shows a head
        assert {group.by for group in alignment.groups if "heads" not in group.name} == {"activations"}


@pytest.mark.parametrize("case", ["mlp", "residual", "transformer"])
def test_two_strangers_come_closer_and_keep_their_function(case):
    network, inputs, spec, reference, _ = _pair(case)
    torch.manual_seed(5)
    stranger = _trained_looking(CASES[case][0]())
    alignment = align_weights(stranger, reference, spec, starts=3)
    assert len(alignment.history) > 1
    assert all(later > earlier for earlier, later in itertools.pairwise(alignment.history))
    assert alignment.objective_after > alignment.objective_before

    def product(state: dict[str, Tensor]) -> float:
        names = {slot.tensor for group in spec.groups for slot in group.slots if slot.compare}
        return sum((state[name].double() * reference[name].double()).sum().item() for name in names)

    assert alignment.objective_before == pytest.approx(product(stranger))
    assert alignment.objective_after == pytest.approx(product(alignment.state))
    assert alignment.history[-1] == alignment.objective_after
    nearer = alignment.distance_before**2 - alignment.distance_after**2
    assert nearer == pytest.approx(2 * (alignment.objective_after - alignment.objective_before))

    outputs = []
    for state in (stranger, alignment.state):
        network.load_state_dict(state)
        outputs.append(network(inputs))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)


def test_one_group_is_solved_exactly():
    """With one group the objective is linear: brute force over all permutations."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    spec = find_groups(network, torch.rand(2, 3))
    state, reference = ({n: torch.randn_like(t) for n, t in network.state_dict().items()} for _ in range(2))
    alignment = align_weights(state, reference, spec)

    def distance(order: tuple[int, ...]) -> float:
        moved = permute(state, spec, {"0": torch.tensor(order)})
        return sum((moved[n] - reference[n]).square().sum().item() for n in reference) ** 0.5

    assert alignment.distance_after == pytest.approx(min(map(distance, itertools.permutations(range(5)))))


def test_a_tensor_that_holds_a_group_twice_never_makes_it_worse():
    """x + W x ties both dims of W: the objective is quadratic there, and a plain assignment may lower it."""
    spec = PermutationSpec((PermutationGroup("stream", 5, (Slot("w", 0), Slot("w", 1), Slot("v", 1))),))
    for seed in range(20):
        torch.manual_seed(seed)
        state, reference = ({"w": torch.randn(5, 5), "v": torch.randn(2, 5)} for _ in range(2))
        alignment = align_weights(state, reference, spec)
        assert alignment.objective_after >= alignment.objective_before
        assert all(later > earlier for earlier, later in itertools.pairwise(alignment.history))


def test_running_statistics_move_along_but_are_not_compared():
    _, _, spec, reference, copy = _pair("residual")
    wild = {n: t * 1000 if "running" in n else t for n, t in copy.items()}
    alignment = align_weights(wild, reference, spec)
    torch.testing.assert_close(alignment.state["stem.1.running_var"], reference["stem.1.running_var"] * 1000)
    assert alignment.distance_after == 0


@pytest.mark.parametrize("bundle", [1, 2, 3])
def test_assignment_equals_brute_force(bundle):
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(bundle))
    orders = torch.tensor(list(itertools.permutations(range(6))))
    homes = (orders // bundle).reshape(len(orders), -1, bundle)
    allowed = orders[(homes == homes[..., :1]).all((1, 2))]
    values = similarity[torch.arange(6), allowed].sum(1)
    assert best_permutation(similarity, bundle).tolist() == allowed[values.argmax()].tolist()


def test_correlations_are_those_of_pooled_activations():
    """Against torch.corrcoef of everything at once, though they are gathered in uneven batches."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    inputs = torch.rand(23, 2, 4, 4)
    spec = find_groups(network, inputs[:2])
    state, reference = ({n: torch.randn_like(t) for n, t in network.state_dict().items()} for _ in range(2))
    alignment = align_activations(state, reference, spec, network, inputs, batch_size=7)
    maps = [F.conv2d(inputs, s["0.weight"], s["0.bias"]).transpose(0, 1).flatten(1) for s in (reference, state)]
    table = torch.corrcoef(torch.cat(maps))[:4, 4:]
    assert alignment.objective_before == pytest.approx(table.diagonal().mean().item(), abs=1e-5)
    best = max(itertools.permutations(range(4)), key=lambda order: table[range(4), order].sum().item())
    assert alignment.permutations["0"].tolist() == list(best)
    assert alignment.groups[0].after == pytest.approx(table[range(4), best].mean().item(), abs=1e-5)


def test_a_constant_unit_correlates_with_nothing():
    network, inputs, spec, reference, copy = _pair("mlp")
    reference["3.weight"][2], reference["3.bias"][2] = 0, 0
    for state in (reference, copy):
        state["4.weight"][2], state["4.bias"][2] = 0, 1000.0
    alignment = align_activations(copy, reference, spec, network, inputs)
    assert -1 <= alignment.groups[1].after < 1


def test_every_network_is_aligned_to_the_first():
    _, _, spec, reference, copy = _pair("mlp")
    aligned = align_all({"a": reference, "b": copy, "c": reference}, partial(align_weights, groups=spec))
    assert list(aligned) == ["b", "c"]
    assert all(torch.equal(aligned["b"].state[n], reference[n]) for n in reference)
    assert [group.moved for group in aligned["c"].groups] == [0, 0]
    with pytest.raises(ValueError, match=r"networks to align are \['a'\]; expected a reference and at least one more"):
        align_all({"a": reference}, partial(align_weights, groups=spec))
    with pytest.raises(ValueError, match=r"^b: network and reference cannot be aligned"):
        align_all({"a": reference, "b": {**copy, "0.bias": torch.zeros(3)}}, partial(align_weights, groups=spec))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.bias": None}, "0.bias is only in one of the networks"),
        ({"more": torch.zeros(2)}, "more is only in one of the networks"),
        ({"0.bias": torch.zeros(17)}, r"0.bias is \(17,\), in the reference \(16,\)"),
        ({"0.bias": torch.full((16,), float("nan"))}, "0.bias holds NaN or infinite numbers"),
    ],
)
def test_networks_that_do_not_fit_each_other_are_refused(changes, message):
    _, _, spec, reference, copy = _pair("mlp")
    state = {n: t for n, t in {**copy, **changes}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        align_weights(state, reference, spec)


def test_requests_that_make_no_sense_are_refused():
    network, inputs, spec, reference, copy = _pair("mlp")
    with pytest.raises(ValueError, match="starts is 0; expected at least 1"):
        align_weights(copy, reference, spec, starts=0)
    with pytest.raises(ValueError, match="no permutation groups to align: f cannot be traced"):
        align_weights(copy, reference, PermutationSpec((), ("f cannot be traced",)))
    with pytest.raises(ValueError, match="1 calibration inputs; expected at least 2"):
        align_activations(copy, reference, spec, network, inputs[:1])
    with pytest.raises(ValueError, match=r"weights do not fit Conv4:\n  missing: blocks\.0\.0\.weight"):
        align_activations(copy, reference, spec, Conv4(1, 8, 16), inputs)
    with pytest.raises(ValueError, match="square table of finite numbers"):
        best_permutation(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Observation("nowhere", 1), "module 'nowhere' is to be observed, but Sequential has none"),
        (
            Observation("6", 1),
            r"module '6' made outputs of shapes \[\(64, 3\)\]; expected one call, with 16 units along",
        ),
        (Observation("0", 2), r"module '0' made outputs of shapes \[\(64, 16\)\]; .* along dim 2"),
    ],
)
def test_observations_that_do_not_fit_are_refused(observation, message):
    network, inputs, spec, reference, copy = _pair("mlp")
    first = replace(spec.groups[0], observations=(observation,))
    with pytest.raises(ValueError, match=message):
        align_activations(copy, reference, PermutationSpec((first, spec.groups[1])), network, inputs)
