"""Outputs of any form become one tensor, and features."""

from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.networks import ParameterSpace, TaskNetwork
from pyro_smat.networks.features import SourceFeatures
from pyro_smat.networks.outputs import as_features, checked_features, tensor_of

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


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((4, 16, 8, 8), lambda x: x.mean((2, 3))),
        ((4, 15, 6), lambda x: x[:, 0]),
        ((4,), lambda x: x.unsqueeze(1)),
        ((4, 3, 2, 2, 2), lambda x: x.flatten(1)),
    ],
)
def test_what_are_no_features_is_refused_with_what_makes_them_of_it(
    shape: tuple[int, ...], mend: Callable[[Tensor], Tensor]
) -> None:
    """Also where frozen features are made, with a pool and without."""

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)).sum() + torch.zeros(len(x), *shape[1:])

    given = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(f"gives {shape} for 4 images; expected features (4, f)")):
        checked_features(given, 4)
    assert checked_features(mend(given), 4).ndim == 2
    module = Own(9, 2)
    space = ParameterSpace.from_module(module)
    pool = ImagePool(
        torch.zeros(4, 1, 3, 3).byte(), torch.zeros(4, 1).long(), ("class",), (("a",),), torch.zeros(4).long()
    )
    for features in (
        lambda: SourceFeatures(TaskNetwork(module, space), torch.randn(2, space.dim))(torch.rand(4, 1, 3, 3)),
        lambda: SourceFeatures(TaskNetwork(module, space), torch.randn(2, space.dim), pool).of_pool(),
    ):
        with pytest.raises(ValueError, match="expected features"):
            features()


def test_images_that_were_mixed_are_named() -> None:
    with pytest.raises(ValueError, match=r"gives \(16,\) for 4 images; .* keep the images apart"):
        checked_features(torch.zeros(16), 4)


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
