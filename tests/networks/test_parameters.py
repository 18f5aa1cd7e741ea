"""ParameterSpace against the module's own state dict."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks import build_network
from pyro_smat.networks.parameters import ParameterSpace


class Oddities(nn.Module):
    """A scalar parameter, an integer buffer, a persistent and a non-persistent float buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.linear = nn.Linear(3, 2, bias=False)
        self.register_buffer("offset", torch.ones(2))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale + self.offset


def test_coordinates_are_the_float_entries_of_the_state_dict_in_its_order() -> None:
    module = build_network("resnet18")
    space = ParameterSpace.from_module(module)
    floats = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    assert space.names == tuple(floats)
    assert not any("num_batches_tracked" in name for name in space.names)
    assert space.dim == sum(v.numel() for v in floats.values())
    assert [e.offset for e in space.entries] == [
        sum(v.numel() for v in list(floats.values())[:i]) for i in range(len(floats))
    ]
    assert {e.name for e in space.entries if e.trainable} == {name for name, _ in module.named_parameters()}


def test_flatten_and_unflatten_are_inverse_and_unflatten_makes_views() -> None:
    module = Oddities()
    space = ParameterSpace.from_module(module)
    assert space.names == ("scale", "offset", "linear.weight")
    theta = torch.randn(4, 5, space.dim)
    named = space.unflatten(theta)
    assert {k: v.shape for k, v in named.items()} == {
        "scale": (4, 5),
        "offset": (4, 5, 2),
        "linear.weight": (4, 5, 2, 3),
    }
    assert all(v.untyped_storage().data_ptr() == theta.untyped_storage().data_ptr() for v in named.values())
    one = {k: v[1, 2] for k, v in named.items()}
    assert torch.equal(space.flatten(one), theta[1, 2])
    assert {k: v.shape for k, v in space.unflatten(theta[0, 0]).items()} == {
        k: v.shape for k, v in module.state_dict().items() if k != "steps"
    }
    with pytest.raises(ValueError, match="theta has 8 coordinates; expected d = 9"):
        space.unflatten(theta[..., :-1])


def test_trainable_is_false_exactly_at_running_statistics() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    space = ParameterSpace.from_module(module)
    named = space.unflatten(space.trainable().float())
    for name, values in named.items():
        assert torch.equal(values, torch.full_like(values, 0.0 if "running" in name else 1.0)), name


def test_blocks_are_consecutive_column_slices_and_the_first_pattern_wins() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    space = ParameterSpace.from_module(module, {"ends": "0|2", "first again": "0", "rest": ".*"})
    assert space.names == ("0.weight", "0.bias", "2.weight", "2.bias", "1.weight", "1.bias")
    assert space.block_names == ("ends", "first again", "rest")
    assert space.block_sizes == (9 + 25, 0, 16)
    state = module.state_dict()
    assert torch.equal(space.flatten(state)[9 + 25 :], torch.cat([state["1.weight"].flatten(), state["1.bias"]]))
    with pytest.raises(ValueError, match=r"no block matches tensor '1.weight'"):
        ParameterSpace.from_module(module, {"ends": "0|2"})


def test_tied_weights_and_twice_registered_modules_are_refused_by_name() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"'1.weight' is the same tensor as '0.weight'"):
        ParameterSpace.from_module(tied)
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"'2.weight' is the same tensor as '0.weight'"):
        ParameterSpace.from_module(nn.Sequential(layer, nn.ReLU(), layer))
    norm = nn.BatchNorm1d(3, affine=False)
    with pytest.raises(ValueError, match=r"buffer '2.running_mean' is the same tensor as '0.running_mean'"):
        ParameterSpace.from_module(nn.Sequential(norm, nn.Linear(3, 3), norm))
    relu = nn.ReLU()
    ParameterSpace.from_module(nn.Sequential(relu, nn.Linear(3, 3), relu))  # nothing to corrupt


def test_lazy_layers_are_refused_until_they_have_shapes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"network has lazy layers without shapes yet \(\['1.weight', '1.bias'\]\)"):
        ParameterSpace.from_module(network)
    network(torch.zeros(1, 3))
    assert ParameterSpace.from_module(network).dim == 8


@pytest.mark.parametrize("pattern", ["(", 3])
def test_a_pattern_that_is_none_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"block 'x' has the pattern .*, which is no regular expression .* 'layer1"):
        ParameterSpace.from_module(nn.Linear(2, 2), {"x": pattern})


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        ParameterSpace.from_module(nn.ReLU())


def test_all_differences_are_listed_at_once() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4), nn.BatchNorm1d(4))
    space = ParameterSpace.from_module(module)
    state = dict(module.state_dict())
    del state["0.bias"], state["2.bias"]
    state["1.weight"] = torch.zeros(4, 3)
    state["1.bias"] = torch.tensor([0.0, math.nan, 0.0, 0.0])
    state["2.weight"] = torch.zeros(4, dtype=torch.int8)
    state["2.running_var"] = torch.tensor([1.0, 1.0, math.inf, 1.0])
    state["head.weight"] = torch.zeros(7)
    with pytest.raises(ValueError, match="does not fit") as caught:
        space.flatten(state)
    message = str(caught.value)
    for part in (
        "missing: 0.bias (2,)",
        "missing: 2.bias (4,)",
        "shape: 1.weight is (4, 3), expected (4, 2)",
        "not finite: 1.bias",
        "dtype: 2.weight is torch.int8",
        "not finite: 2.running_var",
        "extra: head.weight (7,)",
    ):
        assert part in message
    assert len(space.differences(state)) == 7
    assert space.differences(module.state_dict()) == []
