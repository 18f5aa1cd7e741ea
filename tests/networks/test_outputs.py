"""Outputs of any form become one tensor, and features."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.networks import ParameterSpace, TaskNetwork
from pyro_smat.networks.outputs import as_features, tensor_of

A, B = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
Pair = namedtuple("Pair", ["hidden", "logits"])


@pytest.mark.parametrize(
    "output",
    [
        A,
        (A, B),
        [A, B],
        ((None, A), B),
        {"anything": A, "more": B},
        {"last_hidden_state": B, "pooler_output": A},
        {"pooler_output": None, "last_hidden_state": A},
        OrderedDict(logits=A),
        SimpleNamespace(logits=B, last_hidden_state=A, pooler_output=None),
        Pair(hidden=B, logits=A),
        (None, {"features": A}),
    ],
)
def test_one_tensor_by_the_rule(output: Any) -> None:
    assert tensor_of(output) is A


@pytest.mark.parametrize("output", [None, 3, "text", (), {}, [None], SimpleNamespace(x=1)])
def test_outputs_without_a_tensor_are_refused(output: Any) -> None:
    with pytest.raises(ValueError, match="expected a tensor, or a tuple, mapping or object that holds one"):
        tensor_of(output)


def test_features_are_means_over_tokens_and_pixels() -> None:
    tokens, maps = torch.randn(2, 5, 3), torch.randn(2, 3, 4, 6)
    assert as_features(A) is A
    torch.testing.assert_close(as_features((tokens,)), torch.stack([tokens[:, i] for i in range(5)]).sum(0) / 5)
    expected = sum(maps[:, :, i, j] for i in range(4) for j in range(6)) / 24
    torch.testing.assert_close(as_features(maps), expected)
    with pytest.raises(ValueError, match=r"returns \(3,\); expected features"):
        as_features(torch.zeros(3))


def test_task_networks_take_the_tensor_for_one_task_and_for_many() -> None:
    class Tuple(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"pooler_output": super().forward(x), "last_hidden_state": x}

    module = Tuple(3, 2)
    space = ParameterSpace.from_module(module)
    network, theta = TaskNetwork(module, space), torch.randn(2, space.dim)
    expected = torch.stack([A @ row[:6].view(2, 3).T + row[6:] for row in theta])
    torch.testing.assert_close(network(theta, A.expand(2, 2, 3)), expected)
    torch.testing.assert_close(network(theta[1], A), expected[1])
    assert network.one_at_a_time is None
