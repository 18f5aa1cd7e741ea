"""Permutation groups found by tracing: what is free, what stays, and the proof that it is right."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import small_networks as networks
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from pyro_smat.networks import Conv4, build_network
from pyro_smat.sources.alignment import (
    PermutationGroup,
    PermutationSpec,
    Slot,
    check_groups,
    example_input,
    find_groups,
    permute,
    random_permutations,
)

TOKENS, VECTORS, IMAGES = torch.rand(2, 7, 5), torch.rand(4, 6), torch.rand(2, 3, 8, 8)
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}


def sizes(spec: PermutationSpec) -> dict[str, int]:
    return {group.name: group.size for group in spec.groups}


@pytest.mark.parametrize(
    ("build", "inputs", "expected"),
    [
        (networks.mlp, VECTORS, {"0": 16, "3": 12}),
        (networks.Residual, IMAGES, {"stem.0": 8, "inner.0.0": 6, "inner.1.0": 10, "inner.1.3": 12}),
        (
            networks.Transformer,
            TOKENS,
            {
                "embed": 16,
                "encoder.layers.0.self_attn.heads": 4,
                "encoder.layers.0.linear1": 24,
                "encoder.layers.1.self_attn.heads": 4,
                "encoder.layers.1.linear1": 24,
            },
        ),
        (networks.CrossAttention, TOKENS, {"query": 8, "key": 6, "value": 10, "attention.heads": 4, "attention": 8}),
        (lambda: networks.CrossAttention(True), TOKENS, {"query": 8, "key": 6, "value": 10, "attention": 8}),
        (networks.Concatenated, IMAGES, {"first.0": 6, "second.0": 8}),
        (networks.Grouped, IMAGES[..., :6, :6].repeat(1, 1, 2, 2)[..., :8, :8], {"expand": 12, "squeeze": 4}),
        (networks.ChannelsLast, IMAGES, {"stem": 8, "up": 20}),
        (networks.Unknown, VECTORS, {"third": 7}),
        (lambda: Conv4(1, 32, 16), torch.rand(2, 1, 16, 16), {"blocks.0.0": 32, "blocks.1.0": 32, "blocks.2.0": 32}),
    ],
)
def test_groups_are_those_that_can_move_and_moving_them_changes_nothing(build, inputs, expected):
    torch.manual_seed(0)
    network = build()
    spec = find_groups(network, inputs)
    assert sizes(spec) == expected
    assert check_groups(network, spec, inputs) < 1e-12


@pytest.mark.parametrize(
    ("build", "count", "units"),
    [
        # resnet18: 8 inner groups, and 4 streams that the residual additions tie together
        (lambda: resnet18(weights=None), 12, 2 * (64 + 128 + 256 + 512) + 64 + 128 + 256 + 512),
        # mobilenet_v2: stem, 16 expansions (each with its depthwise convolution), 7 streams, the last layer
        (lambda: mobilenet_v2(weights=None), 25, 9128),
        (lambda: build_network("vit", **VIT), 4, 2 * (4 + 24)),  # its output is the stream, which therefore stays
    ],
)
def test_groups_of_torchvision_networks(build, count, units):
    torch.manual_seed(0)
    network = build()
    inputs = torch.rand(2, 3, 32, 32)
    spec = find_groups(network, inputs)
    assert (len(spec.groups), sum(sizes(spec).values())) == (count, units)
    assert check_groups(network, spec, inputs) < 1e-12


def test_channels_of_a_normalisation_group_stay_together():
    spec = find_groups(Conv4(1, 32, 16), torch.rand(2, 1, 16, 16))
    assert {group.bundle for group in spec.groups} == {8}
    torn = PermutationSpec(tuple(replace(group, bundle=1) for group in spec.groups))
    with pytest.raises(ValueError, match=r"blocks\.0\.0 .*a slot is missing or wrong"):
        check_groups(Conv4(1, 32, 16), torn, torch.rand(2, 1, 16, 16))


def test_flattened_channels_move_as_blocks_of_pixels():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))
    (group,) = find_groups(network, IMAGES).groups
    assert Slot("3.weight", 1, block=36) in group.slots
    assert check_groups(network, PermutationSpec((group,)), IMAGES) < 1e-12


def test_a_norm_first_transformer_has_the_groups_of_a_norm_last_one():
    first, last = (find_groups(networks.Transformer(order), TOKENS) for order in (True, False))
    assert first.groups == last.groups
    assert check_groups(networks.Transformer(True), first, TOKENS) < 1e-12


@pytest.mark.parametrize("build", [networks.mlp, networks.Residual, networks.Transformer, networks.Grouped])
def test_the_proof_notices_every_forgotten_tensor(build):
    """Drop each slot in turn: scales of one and biases of zero must not hide it."""
    torch.manual_seed(0)
    network = build()
    inputs = {networks.mlp: VECTORS, networks.Transformer: TOKENS}.get(build, IMAGES)
    spec = find_groups(network, inputs)
    for number, group in enumerate(spec.groups[:3]):
        for slot in group.slots:
            broken = replace(group, slots=tuple(kept for kept in group.slots if kept is not slot))
            groups = (*spec.groups[:number], broken, *spec.groups[number + 1 :])
            with pytest.raises(ValueError, match=f"{group.name} .*a slot is missing or wrong"):
                check_groups(network, PermutationSpec(groups), inputs)


def test_notes_say_what_stays_and_why():
    notes = "\n".join(find_groups(networks.Concatenated(), IMAGES).notes)
    assert "concatenation along units; 4 units of first.3 stay in place" in notes
    notes = "\n".join(find_groups(networks.Grouped(), IMAGES).notes)
    assert "grouped: convolution in 2 groups; 8 units of middle stay in place" in notes
    notes = "\n".join(find_groups(networks.Unknown(), VECTORS).notes)
    assert "sort is not understood; 10 units of first" in notes
    assert "gate: _Gate is not understood; 8 units of second" in notes
    assert "units picked by their number; 9 units of fifth" in notes


def test_layers_with_hooks_keep_their_units():
    network = networks.mlp()
    network[2].register_forward_hook(lambda _, __, output: output * torch.arange(16))
    spec = find_groups(network, VECTORS)
    assert sizes(spec) == {"3": 12}
    assert check_groups(network, spec, VECTORS) < 1e-12


def test_what_cannot_be_traced_has_no_groups_but_a_note():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    spec = find_groups(Branching(), VECTORS)
    assert spec.groups == ()
    assert "Branching cannot be traced" in spec.notes[0]


def test_the_module_comes_back_as_it_was():
    network = networks.Residual().train()
    network.head.eval()
    before = copy.deepcopy(network.state_dict())
    find_groups(network, IMAGES)
    check_groups(network, find_groups(network, IMAGES), IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training
    assert not network.head.training


def test_an_input_is_guessed_from_the_first_layer():
    assert example_input(networks.mlp()).shape == (2, 6)
    assert example_input(Conv4(3, 8, 32)).shape == (2, 3, 16, 16)
    with_head = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    assert example_input(with_head).shape == (2, 1, 28, 28)
    with pytest.raises(ValueError, match="no input for PReLU could be guessed"):
        example_input(nn.PReLU())


def test_permuting_moves_blocks_and_repeats():
    state = {"w": torch.arange(12.0).reshape(12, 1), "n": torch.tensor(3)}
    spec = PermutationSpec((PermutationGroup("g", 2, (Slot("w", 0, block=2, repeat=3),)),))
    swapped = permute(state, spec, {"g": torch.tensor([1, 0])})
    assert swapped["w"].flatten().tolist() == [2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9]
    assert swapped["n"] is state["n"]
    assert permute(state, spec, {})["w"] is state["w"]


def test_random_permutations_keep_bundles_and_reach_all_units():
    spec = PermutationSpec((PermutationGroup("g", 12, (Slot("w", 0),), bundle=4),))
    order = random_permutations(spec, torch.Generator().manual_seed(0))["g"]
    assert sorted(order.tolist()) == list(range(12))
    assert all(len({int(i) // 4 for i in part}) == 1 for part in order.split(4))
    assert order.tolist() != list(range(12))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([PermutationGroup("g", 4, (Slot("v", 0),))], "g: there is no tensor v"),
        ([PermutationGroup("g", 4, (Slot("w", 2),))], r"g: dim 2 of w, which is \(6, 4\)"),
        ([PermutationGroup("g", 4, (Slot("w", 0),))], r"length 6; expected repeat 1 x 4 units x block 1 = 4"),
        ([PermutationGroup("g", 6, (Slot("w", 0),), bundle=4)], "6 units in bundles of 4"),
        ([PermutationGroup("g", 6, ())], "0 slots"),
        (
            [PermutationGroup("g", 6, (Slot("w", 0),)), PermutationGroup("h", 6, (Slot("w", 0),))],
            "belongs to g already",
        ),
        (
            [PermutationGroup("g", 6, (Slot("w", 0),)), PermutationGroup("g", 4, (Slot("w", 1),))],
            "two groups have this",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        permute({"w": torch.zeros(6, 4)}, PermutationSpec(tuple(groups)), {})


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"h": torch.arange(6)}, r"permutation of 'h', which is no group; groups are \['g'\]"),
        ({"g": torch.arange(5)}, "is no permutation of its 6 units"),
        ({"g": torch.tensor([0, 0, 1, 2, 3, 4])}, "is no permutation of its 6 units"),
        ({"g": torch.tensor([0, 3, 1, 2, 4, 5])}, "tears bundles of 3 units apart"),
    ],
)
def test_what_is_no_permutation_is_refused(permutations, message):
    spec = PermutationSpec((PermutationGroup("g", 6, (Slot("w", 0),), bundle=3),))
    with pytest.raises(ValueError, match=message):
        permute({"w": torch.zeros(6, 4)}, spec, permutations)


def test_an_input_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Sequential does not run on inputs of shape \(2, 7\)"):
        find_groups(networks.mlp(), torch.rand(2, 7))


def test_a_network_of_infinite_outputs_cannot_be_checked():
    network = networks.mlp()
    spec = find_groups(network, VECTORS)
    with pytest.raises(ValueError, match="makes no finite tensor"):
        check_groups(network, spec, torch.full((4, 6), float("inf")))
