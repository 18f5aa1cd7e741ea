"""build_network and describe_network: names, options, files, initial weights, and what is remembered."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks import ParameterSpace, TaskNetwork, build_network, describe_network, feature_dim
from pyro_smat.registry import choose

FILE = """
from torch import nn

class Body(nn.Module):
    def __init__(self, width: int = 4, depth: int = 1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else width, width, 3) for i in range(depth)))

    def forward(self, x):
        return {"maps": self.layers(x)}

def text():
    return "no module"
"""


def test_what_was_built_can_be_described_and_built_again() -> None:
    network = build_network("conv4", channels=8, stem="stride")
    choice = describe_network(network)
    assert choice is not None
    assert choice.to_dict() == {"kind": "conv4", "in_channels": 1, "channels": 8, "image_size": 32, "stem": "stride"}
    again = build_network(choose("network", choice.to_dict()))
    again.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(again(x), network(x))
    described = describe_network(copy.deepcopy(network).double())
    assert described == choice
    space = ParameterSpace.from_module(network)
    assert TaskNetwork(network, space).choice == choice
    assert repr(TaskNetwork(network, space)) == f"TaskNetwork(conv4, d = {space.dim:,})"


def test_modules_of_ones_own_and_changed_ones_are_not_described() -> None:
    network = build_network("conv4", channels=8)
    network.blocks[0][2] = nn.Tanh()  # type: ignore[index, union-attr, operator]
    assert describe_network(network) is None
    assert describe_network(nn.Linear(2, 2)) is None
    assert TaskNetwork(network, ParameterSpace.from_module(network)).choice is None
    pickled = build_network("vit", image_size=8, patch_size=4, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4)
    with torch.no_grad():
        next(pickled.parameters()).zero_()  # values don't matter
    assert describe_network(pickled) is not None


def test_files_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "body.py"
    path.write_text(FILE)
    name = f"{path}:Body"
    with pytest.raises(ValueError, match="loading never runs a file: pass own="):
        build_network(name)
    network = build_network(name, run_files=True, width=5, depth=2)
    assert feature_dim(network, (3, 16, 16)) == 5  # maps become features
    choice = describe_network(network)
    assert choice is not None
    assert choice.to_dict() == {"kind": name, "width": 5, "depth": 2}
    assert set(network.state_dict()) == {f"layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"has no option 'widht'; did you mean 'width'\?"):
        build_network(name, run_files=True, widht=5)
    with pytest.raises(ValueError, match=r"makes str; expected a torch.nn.Module"):
        build_network(f"{path}:text", run_files=True)

    def passed(width: int = 3) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten())

    assert isinstance(build_network(name, own={"network": passed}), nn.Sequential)


def test_a_generator_draws_the_weights_and_nothing_global_moves() -> None:
    for name, options in (("conv4", {}), ("resnet18", {}), ("mobilenet_v2", {"width_mult": 0.1})):
        torch.manual_seed(3)
        expected = build_network(name, **options)
        state = torch.get_rng_state()
        found = build_network(name, generator=torch.Generator().manual_seed(3), **options)
        assert torch.equal(torch.get_rng_state(), state)
        for key, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[key], tensor), key


def test_generators_of_threads_do_not_mix() -> None:
    def build(seed: int) -> Tensor:
        network = build_network("conv4", generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    serial = [build(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(build, range(8)), serial, strict=True):
            assert torch.equal(found, expected)


def test_options_beside_a_choice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"options \['channels'\] beside a choice"):
        build_network(choose("network", "conv4"), channels=8)
