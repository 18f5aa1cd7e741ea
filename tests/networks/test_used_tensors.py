"""Tensors that features depend on are found by running the network without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks.used_tensors import used_tensors


class Network(nn.Module):
    """A body; a last layer whose logits are returned beside the features; a scale that is zero; statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
        self.scale = nn.Parameter(torch.zeros(1))
        self.branch = nn.Linear(8, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        features = features + self.scale * torch.relu(self.branch(features) - 1e6)
        return {"logits": self.classifier(features), "features": features}


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ([], []),
        (["classifier.weight", "classifier.bias"], []),
        (["body.1.running_mean", "classifier.bias"], ["body.1.running_mean"]),
        (["branch.weight", "branch.bias", "scale"], ["branch.weight", "branch.bias", "scale"]),  # zero, and dead
        (["body.0.weight"], ["body.0.weight"]),
    ],
)
def test_what_features_depend_on_and_what_stays_as_it_was(names: list[str], used: list[str]) -> None:
    module = Network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    assert used_tensors(module, names, (1, 4, 4)) == tuple(used)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training


def test_where_nobody_can_say() -> None:
    names = ["body.0.weight"]
    assert used_tensors(Network().to("meta"), names, (1, 4, 4)) == ()
    assert used_tensors(Network(), names, (3, 4, 4)) == ()  # it does not run
    broken = Network()
    broken.body[0].bias.data.fill_(torch.nan)
    assert used_tensors(broken, names, (1, 4, 4)) == ()


def test_half_precision() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).bfloat16()
    assert used_tensors(module, ["1.bias"], (1, 4, 4)) == ("1.bias",)
